"""Read an exported model: one file with a description of itself and images to verify it with.

`docs/artefact.md` specifies the entries. Each format has its own place for them:

- ONNX: ``metadata_props`` of the model
- OpenVINO: ``rt_info`` of the ``.xml`` file
- torch.export: extra files in the ``.pt2`` archive
"""

from __future__ import annotations

import base64
import binascii
import json
import lzma
import math
import mmap
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..calibration import Calibration
from ..data.preprocessing import Preprocessing
from ..distribution import distribution_name
from ..errors import ArtefactError, ModelFileError
from . import protobuf

FORMAT_VERSION = 1
MANIFEST = "resnetkit"
GOLDEN = "resnetkit.golden"

ENTRANCES = ("image", "crop")
RUNTIMES = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
"""The runtime of a file, by its extension."""

OUTPUTS = ("logits", "probabilities")
"""Names of the outputs, both ``(N, classes)`` float32."""

STAGES = ("cropped", "normalized", "features")
"""Intermediate values that a runtime can be asked for: the resized and cropped image
``(N, C, S, S)`` with the levels 0 to 255, the network's input, and the input of the last layer
``(N, F)``. All are float32."""

MAX_FILE = 2 * 2**30
MAX_TEXT = 256 * 2**20
"""Maximum size of an entry, or of an OpenVINO ``.xml`` file, in bytes."""

MAX_GOLDEN = 64

DAMAGED_ARCHIVE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    EOFError, NotImplementedError, OSError, RuntimeError, ValueError,
)  # fmt: skip
"""The exceptions that `zipfile` raises for damaged files."""

MAX_CLASSES = 1_000_000

TOLERANCES = {
    "levels": 1,
    "level_share": 0.999,
    "most_levels": 2,
    "normalized": 1e-4,
    "logit_share": 0.02,
    "probability": 1e-3,
}
"""How far a runtime's values may be from the recorded ones.

Decoded pixels and crops: at least ``level_share`` of the values are off by at most ``levels`` of
255, and none by more than ``most_levels``. Normalized values and probabilities: the largest
difference. Logits: the largest difference, as a share of the standard deviation of the image's
logits.
"""


@dataclass(frozen=True)
class Manifest:
    """An exported file's description of itself.

    Args:
        entrance: the name of its input. ``image``: ``(N, H, W, C)`` uint8 of any size. ``crop``:
            ``(N, S, S, C)`` uint8, already resized and cropped.
        classes: the class names, in the order of the logits.
        preprocessing: how a file becomes the network's input; its decoder is ``full``.
        precision: ``fp32`` or ``int8``.
        source: the model file: ``sha256``, ``architecture`` and ``options``.
        metrics: the metrics measured with the model file.
        recipe: the recipe the model was trained with.
        data: the dataset, with the digests of its training and validation images.
        calibration: the calibration data of the model file; see `calibration.Calibration`.
        license: the license of the weights, if it is known.
        stages: the names that the intermediate values `STAGES` have in the file.
        tolerances: how far answers may be from the recorded ones.
        versions: the versions of the libraries that exported it.
    """

    entrance: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    precision: str = "fp32"
    source: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    license: str | None = None
    stages: dict[str, str] = field(default_factory=lambda: {name: name for name in STAGES})
    tolerances: dict[str, float] = field(default_factory=lambda: dict(TOLERANCES))
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def input_channels(self) -> int:
        """Channels of the input. Images are RGB, or RGBA if the network sees transparency."""
        channels = self.preprocessing.channels
        return 3 if self.entrance == "image" and channels == 1 else channels

    @property
    def digest(self) -> str:
        """The first 12 hex digits of the model file's SHA-256, as it appears in rows."""
        return str(self.source.get("sha256", ""))[:12]

    def to_json(self) -> str:
        """Return the entry ``resnetkit``; equal manifests give equal text."""
        content = {
            "format_version": FORMAT_VERSION,
            "entrance": self.entrance,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "precision": self.precision,
            "source": self.source,
            "metrics": self.metrics,
            "recipe": self.recipe,
            "data": self.data,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "license": self.license,
            "stages": self.stages,
            "tolerances": self.tolerances,
            "versions": self.versions,
        }
        return _to_text(content)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Check and return a manifest that `to_json` wrote.

        Raises:
            ArtefactError: a value is missing, has the wrong type or is out of range, or the version
                is newer.
        """
        content = _from_text(text, MANIFEST)
        version = content.get("format_version")
        if type(version) is not int or version < 1:
            raise ArtefactError("its description is damaged (no format_version)")
        if version > FORMAT_VERSION:
            raise ArtefactError(
                f"it has format version {version}; this resnetkit reads up to {FORMAT_VERSION}. "
                f"Upgrade it: pip install --upgrade {distribution_name()}"
            )
        kinds: dict[str, tuple[type, ...]] = {
            "entrance": (str,),
            "classes": (list,),
            "preprocessing": (dict,),
            "precision": (str,),
            "source": (dict,),
            "metrics": (dict,),
            "recipe": (dict,),
            "data": (dict,),
            "calibration": (dict, type(None)),
            "license": (str, type(None)),
            "stages": (dict,),
            "tolerances": (dict,),
            "versions": (dict,),
        }
        for name, kind in kinds.items():
            if not isinstance(content.get(name), kind):
                found = type(content.get(name)).__name__
                raise ArtefactError(f"its description is damaged ({name} is {found})")
        classes = content["classes"]
        if not all(isinstance(name, str) for name in classes) or len(classes) > MAX_CLASSES:
            raise ArtefactError("its description is damaged (classes)")
        if content["entrance"] not in ENTRANCES:
            raise ArtefactError(f"its entrance is {content['entrance']!r}, not image or crop")
        tolerances = content["tolerances"]
        if tolerances.keys() != TOLERANCES.keys() or not all(map(_is_number, tolerances.values())):
            raise ArtefactError("its description is damaged (tolerances)")
        calibration: Calibration | None = None
        try:
            preprocessing = Preprocessing.from_dict(content["preprocessing"])
            if content["calibration"] is not None:
                calibration = Calibration.from_dict(content["calibration"])
                columns = calibration.means.shape[1]
                problems = calibration.problems(len(classes), columns)
                if problems:
                    raise ArtefactError(problems[0])
        except ModelFileError as error:
            raise ArtefactError(str(error)) from error
        return cls(
            **{
                **{name: content[name] for name in kinds},
                "classes": tuple(classes),
                "preprocessing": preprocessing,
                "calibration": calibration,
            }
        )


@dataclass(frozen=True)
class GoldenImage:
    """An encoded image, and the result of each stage when the model was exported.

    Args:
        name: its name, which says what is special about it.
        file: the encoded image.
        shape: ``(H, W, C)`` of its decoded pixels.
        sha256: the SHA-256 of its decoded pixels.
        sample: `SAMPLE` of its decoded values, or all if there are fewer.
        crop: a PNG of the resized and cropped image.
        logits: ``(classes,)`` float32.
        probabilities: ``(classes,)`` float32.
        near_tie: whether the two largest probabilities are so close that rounding may swap their
            classes.
    """

    name: str
    file: bytes
    shape: tuple[int, int, int]
    sha256: str
    sample: np.ndarray
    crop: bytes
    logits: np.ndarray
    probabilities: np.ndarray
    class_name: str
    near_tie: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values."""
        return {
            "name": self.name,
            "file": _encode(self.file),
            "decoded": {
                "shape": list(self.shape),
                "sha256": self.sha256,
                "sample": _encode(self.sample.tobytes()),
            },
            "crop": _encode(self.crop),
            "logits": _encode(self.logits.astype("<f4").tobytes()),
            "probabilities": _encode(self.probabilities.astype("<f4").tobytes()),
            "class": self.class_name,
            "near_tie": self.near_tie,
        }

    @classmethod
    def from_dict(cls, content: Any, classes: int) -> GoldenImage:
        """Return the golden image that `to_dict` described, after checking every value.

        Raises:
            ArtefactError: a value is missing, has the wrong type or is out of range.
        """
        try:
            decoded = content["decoded"]
            height, width, channels = decoded["shape"]
            if not all(type(n) is int and n > 0 for n in (height, width, channels)):
                raise ValueError("shape")
            numbers = {}
            for name in ("logits", "probabilities"):
                values = np.frombuffer(_decode(content[name]), "<f4").astype(np.float32)
                if len(values) != classes or not np.isfinite(values).all():
                    raise ValueError(name)
                numbers[name] = values
            sample = np.frombuffer(_decode(decoded["sample"]), np.uint8)
            if len(sample) != len(sample_positions(math.prod(decoded["shape"]))):
                raise ValueError("sample")
            return cls(
                name=str(content["name"]),
                file=_decode(content["file"]),
                shape=(height, width, channels),
                sha256=str(decoded["sha256"]),
                sample=sample,
                crop=_decode(content["crop"]),
                logits=numbers["logits"],
                probabilities=numbers["probabilities"],
                class_name=str(content["class"]),
                near_tie=bool(content["near_tie"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
            raise ArtefactError(f"a golden image is damaged ({error})") from error


SAMPLE = 4096
"""Number of decoded values that a golden image keeps."""


def sample_positions(count: int) -> np.ndarray:
    """Return the positions of the decoded values that are kept, evenly spaced."""
    return np.arange(min(count, SAMPLE)) * count // min(count, SAMPLE)


@dataclass(frozen=True)
class Artefact:
    """An exported file: its path, its description of itself, and its golden images."""

    path: Path
    manifest: Manifest
    golden: tuple[GoldenImage, ...]

    @property
    def runtime(self) -> str:
        """``onnx``, ``openvino`` or ``torch``."""
        return RUNTIMES[self.path.suffix]


def golden_to_json(golden: Sequence[GoldenImage]) -> str:
    """Return the entry ``resnetkit.golden``."""
    return _to_text({"images": [image.to_dict() for image in golden]})


def is_artefact(path: Path) -> bool:
    """Return whether a path has the extension of an exported file; its content is not read."""
    return path.suffix in RUNTIMES


def read_artefact(path: Path) -> Artefact:
    """Read and check the entries of an exported file; its network is not read.

    Raises:
        ArtefactError: the file is missing, not an exported model, damaged, from a newer version,
            or refers to other files.
    """
    readers = {"onnx": _read_onnx, "openvino": _read_openvino, "torch": _read_torch}
    if not is_artefact(path):
        raise ArtefactError(
            f"{path} is not an exported model; expected .onnx, .xml or .pt2. To write one from a "
            "model file, use `resnet export`"
        )
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise ArtefactError(f"{path} {problem}; expected a file that `resnet export` wrote")
    if path.stat().st_size > MAX_FILE:
        raise ArtefactError(f"{path} is larger than {MAX_FILE / 2**30:g} GiB")
    try:
        entries = readers[RUNTIMES[path.suffix]](path)
        if MANIFEST not in entries:
            raise ArtefactError(
                f"it has no entry {MANIFEST!r}, so it was not written by `resnet export`"
            )
        manifest = Manifest.from_json(entries[MANIFEST])
        images = _from_text(entries.get(GOLDEN, '{"images": []}'), GOLDEN).get("images")
        if not isinstance(images, list) or len(images) > MAX_GOLDEN:
            raise ArtefactError(f"its golden images are damaged, or number more than {MAX_GOLDEN}")
        count = len(manifest.classes)
        golden = tuple(GoldenImage.from_dict(image, count) for image in images)
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read ({error.strerror})") from error
    return Artefact(path, manifest, golden)


def _read_onnx(path: Path) -> dict[str, str]:
    """Return the metadata of an ONNX model, whose tensors must be in the same file."""
    if path.stat().st_size == 0:
        raise ArtefactError("the file is empty")
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with its last view
    return dict(_onnx_entries(memoryview(content)))


def _onnx_entries(model: memoryview) -> Iterator[tuple[str, str]]:
    """Yield the entries of ``metadata_props``, field 14 of a model; check its graph, field 7.

    Training information and functions, fields 20 and 25, are refused, because they could hold more
    tensors.
    """
    for number, value in protobuf.fields(model):
        if not isinstance(value, memoryview):
            continue
        if number == 7:
            _refuse_external_data(value)
        elif number in (20, 25):
            raise ArtefactError(
                "it has functions or training information, which `resnet export` does not write"
            )
        elif number == 14:
            if len(value) > MAX_TEXT:
                raise ArtefactError(f"its metadata is larger than {MAX_TEXT:,} bytes")
            pair = {n: bytes(v) for n, v in protobuf.fields(value) if isinstance(v, memoryview)}
            try:
                yield pair.get(1, b"").decode(), pair.get(2, b"").decode()
            except UnicodeDecodeError as error:
                raise ArtefactError("its metadata is not text") from error


_SPARSE = "it has sparse tensors, which `resnet export` does not write"


def _refuse_external_data(graph: memoryview, depth: int = 0) -> None:
    """Raise if a tensor is in another file; see GraphProto and TensorProto in onnx.proto."""
    if depth > 8:
        raise ArtefactError("its graphs are nested too deeply")
    for number, value in protobuf.fields(graph):
        if not isinstance(value, memoryview):
            continue
        if number == 5:
            _check_tensor(value)
        elif number == 15:
            raise ArtefactError(_SPARSE)
        elif number == 1:  # a node, whose attributes may hold tensors and graphs
            for name, attribute in protobuf.fields(value):
                if name == 5 and isinstance(attribute, memoryview):
                    for kind, item in protobuf.fields(attribute):
                        if kind in (5, 10) and isinstance(item, memoryview):
                            _check_tensor(item)
                        elif kind in (6, 11) and isinstance(item, memoryview):
                            _refuse_external_data(item, depth + 1)
                        elif kind in (22, 23):
                            raise ArtefactError(_SPARSE)


def _check_tensor(tensor: memoryview) -> None:
    for number, value in protobuf.fields(tensor):
        if number == 13 or (number == 14 and value != 0):
            raise ArtefactError("it keeps tensors in another file, which is never read")


def _read_openvino(path: Path) -> dict[str, str]:
    """Return the ``rt_info`` of an OpenVINO model."""
    if path.stat().st_size > MAX_TEXT:
        raise ArtefactError(f"the .xml file is larger than {MAX_TEXT:,} bytes")
    if not path.with_suffix(".bin").is_file():
        raise ArtefactError(f"{path.with_suffix('.bin').name}, its other half, does not exist")
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ArtefactError("the .xml file is not UTF-8") from error
    if "\0" in text:  # in UTF-16, every letter of a tag has a zero byte
        raise ArtefactError("the .xml file is not UTF-8, or is damaged: it has zero bytes")
    if re.search("<!(DOCTYPE|ENTITY)", text):
        raise ArtefactError("it defines XML entities")
    try:
        info = ElementTree.fromstring(content).find("rt_info")
    except ElementTree.ParseError as error:
        raise ArtefactError(f"the XML is damaged ({error})") from error
    entries = {} if info is None else {item.tag: item.get("value", "") for item in info}
    try:
        return {
            key: _decode(entries[tag]).decode("utf-8", "replace")
            for key, tag in ((MANIFEST, "resnetkit"), (GOLDEN, "resnetkit_golden"))
            if tag in entries
        }
    except ValueError as error:  # not base64
        raise ArtefactError(f"its metadata is damaged ({error})") from error


def _read_torch(path: Path) -> dict[str, str]:
    """Return the extra files of a ``.pt2`` archive; nothing is unpickled."""
    entries = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for key in (MANIFEST, GOLDEN):
                for info in archive.infolist():
                    if info.filename.endswith(f"/extra/{key}.json"):
                        if info.file_size > MAX_TEXT:
                            raise ArtefactError(f"{key} is larger than {MAX_TEXT:,} bytes")
                        entries[key] = archive.read(info).decode("utf-8", "replace")
    except DAMAGED_ARCHIVE as error:
        raise ArtefactError(f"the archive is damaged ({error})") from error
    return entries


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9  # type: ignore[operator]


def _to_text(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode()


def _from_text(text: str, key: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"its entry {key} is damaged ({error})") from error
    if not isinstance(content, dict):
        raise ArtefactError(f"its entry {key} is damaged")
    return content


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
