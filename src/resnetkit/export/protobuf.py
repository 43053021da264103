"""Read the wire format of protocol buffers: enough to inspect an ONNX file without its library.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import ArtefactError

Value = int | memoryview


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield the fields of a message: the number of each, and its integer or bytes.

    Raises:
        ArtefactError: the bytes are not a message.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position, most=5)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 2**29:  # other readers drop bits of a tag, or stop at a zero
            raise ArtefactError(f"a protobuf field number is {number}")
        if kind == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == 2:
            size, position = _varint(message, position, most=5)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ArtefactError(f"a protobuf field has the unknown type {kind}")
        if position + size > len(message):
            raise ArtefactError("a protobuf field is cut short")
        yield number, message[position : position + size]
        position += size


def message(number: int, content: bytes) -> bytes:
    """Return a field that holds a message or bytes."""
    return _encode(number << 3 | 2) + _encode(len(content)) + content


def _varint(data: memoryview, position: int, most: int = 10) -> tuple[int, int]:
    """Return the number of at most ``most`` bytes at a position, and the position after it."""
    value = 0
    for shift in range(0, 7 * most, 7):
        if position >= len(data):
            raise ArtefactError("a protobuf number is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128 and value < 2**64:  # other readers drop the bits above
            return value, position
    raise ArtefactError("a protobuf number is too long")


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
