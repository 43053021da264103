// Enough of the protocol buffer wire format to inspect an ONNX file and to add outputs to it.
// https://protobuf.dev/programming-guides/encoding/

/** Yield [number, value] for each field of a message; a value is a number or a view of the bytes. */
export function* fields(message) {
  let position = 0;

  function varint() {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      // Shifts would truncate lengths to 32 bits.
      if (position >= message.length || scale > 2 ** 63) throw new Error("damaged protobuf");
      const byte = message[position++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  }

  while (position < message.length) {
    const tag = varint();
    const kind = tag % 8;
    const number = Math.floor(tag / 8);
    if (kind === 0) {
      yield [number, varint()];
      continue;
    }
    const size = { 1: () => 8, 2: varint, 5: () => 4 }[kind]?.();
    if (size === undefined || position + size > message.length) throw new Error("damaged protobuf");
    yield [number, message.subarray(position, position + size)];
    position += size;
  }
}

/** Return the entries of an ONNX model: key -> bytes of the value. */
export function metadata(model) {
  const entries = new Map();
  for (const [number, value] of fields(model)) {
    if (number !== 14) continue; // metadata_props of ModelProto, each a StringStringEntryProto
    const pair = new Map(fields(value));
    entries.set(new TextDecoder().decode(pair.get(1)), pair.get(2) ?? new Uint8Array());
  }
  return entries;
}

/**
 * Return an ONNX model whose graph also outputs the named intermediate tensors.
 *
 * Readers merge repeated messages, so the new outputs are appended to the file. Their fields are the
 * graph of a model (7), the outputs of a graph (12), and the name of an output (1).
 */
export function withOutputs(model, names) {
  const outputs = names.map((name) => field(12, field(1, new TextEncoder().encode(name))));
  return concatenated([model, field(7, concatenated(outputs))]);
}

function field(number, content) {
  const head = [number * 8 + 2];
  let size = content.length;
  for (; size > 127; size >>>= 7) head.push((size & 127) | 128);
  return concatenated([Uint8Array.from([...head, size]), content]);
}

function concatenated(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let position = 0;
  for (const part of parts) {
    whole.set(part, position);
    position += part.length;
  }
  return whole;
}
