"""Read the program in a ``.pt2`` file as data.

`torch.export.load` trusts a file: it can unpickle objects, load compiled libraries, and evaluate
expressions that the file contains. So the file is checked first, and `torch.export.load` gets a new
archive that holds only tensors, known operations and sizes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from ..errors import ArtefactError
from .artefact import DAMAGED_ARCHIVE, MAX_FILE

MEMBERS = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt"
    r"|data/(?:weights/(?:weight_\d+|model_weights_config\.json)"
    r"|constants/(?:tensor_\d+|model_constants_config\.json))"
    r"|archive_format|archive_version|byteorder|\.data/(?:version|serialization_id)"
)
"""Members that an archive may hold. Others are dropped, because they could be code."""

OPERATIONS = {
    "__and__", "_assert_tensor_metadata", "_to_copy", "abs", "adaptive_avg_pool2d", "add",
    "add_", "amin", "arange", "avg_pool2d", "batch_norm", "cat", "ceil", "clamp",
    "constant_pad_nd", "conv2d", "cos", "div", "eq", "expand", "flatten", "floor",
    "floor_divide", "full", "ge", "gt", "le", "leaky_relu", "leaky_relu_", "linear", "lt",
    "matmul", "max_pool2d", "maximum", "mean", "minimum", "mul", "ne", "neg", "numpy_T", "ones",
    "pad", "permute", "relu", "relu_", "remainder", "reshape", "select", "sin", "slice",
    "softmax", "stack", "sub", "sum", "sym_size", "to", "transpose", "unsqueeze", "view",
    "where", "zeros", "zeros_like",
}  # fmt: skip
"""The ATen operations that the exporter may use. None of them reads or writes files."""

TARGET = re.compile(r"torch\.ops\.aten\.(\w+)\.\w+")

EXPRESSION = re.compile(
    r"(?:(?:Symbol|Integer|Mul|Add|Max|Min|FloorDiv|CleanDiv)\("
    r"|'[su]\d+'|(?:positive|nonnegative|integer)=True|-?\d{1,19}|[,) ])*"
)
"""Arithmetic on sizes. `torch.export.load` evaluates such strings."""


def read_program(path: Path) -> Any:
    """Return the `torch.export.ExportedProgram` in a file.

    Raises:
        ArtefactError: the file is damaged, or holds more than tensors and known operations.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
    except DAMAGED_ARCHIVE as error:
        raise ArtefactError(f"{path}: the archive is damaged ({error})") from error
    try:
        for kind in ("weights", "constants"):
            _check_tensors(members[f"data/{kind}/model_{kind}_config.json"])
        members["models/model.json"] = _checked(members["models/model.json"])
        # If this fails, `torch.export.load` would unpickle the file without restrictions.
        torch.load(io.BytesIO(members["data/sample_inputs/model.pt"]), weights_only=True)
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from error
    except Exception as error:
        raise ArtefactError(f"{path}: the program is damaged ({error!r:.200})") from error
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    content.seek(0)
    return torch.export.load(content)


def _members(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Return the contents of the members that are needed, without the enclosing folder."""
    found: dict[str, bytes] = {}
    left = MAX_FILE
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if MEMBERS.fullmatch(name):
            left -= info.file_size
            if left < 0 or name in found:
                raise ValueError(f"{name} is too large or occurs twice")
            found[name] = archive.read(info)
    return found


def _check_tensors(config: bytes) -> None:
    for name, entry in json.loads(config)["config"].items():
        if entry.get("use_pickle"):
            raise ArtefactError(f"{name} is a pickle, which is never read. Export the model again")


def _checked(program: bytes) -> bytes:
    """Check the operations and sizes in a program, and return it without executable code."""
    content = json.loads(program)
    content["guards_code"] = []
    if content["graph_module"].get("treespec_namedtuple_fields"):
        raise ArtefactError("it defines types. Export the model again")
    _check(content)
    return json.dumps(content).encode()


def _check(value: Any) -> None:
    """Check a part of a program, and remove its metadata about source code."""
    if isinstance(value, list):
        for item in value:
            _check(item)
    elif isinstance(value, dict):
        if "metadata" in value:
            value["metadata"] = {}
        for key, item in value.items():
            if isinstance(item, str) and key == "target":
                match = TARGET.fullmatch(item)
                if match is None or match[1] not in OPERATIONS:
                    raise ArtefactError(f"unknown operation {item[:80]}. Export the model again")
            elif isinstance(item, str) and key in ("expr_str", "as_expr"):
                if not EXPRESSION.fullmatch(item):
                    raise ArtefactError(f"invalid size {item[:80]!r}. Export the model again")
            else:
                _check(item)
