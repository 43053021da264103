"""Damaged or forged model files raise a clear error, fast and in little memory."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit.calibration import Calibration, Matrix
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.errors import ModelFileError
from resnetkit.models import get_model
from resnetkit.models.weights import modelfile
from resnetkit.models.weights.modelfile import KEY, Header

ROOM = 2**30


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    torch.manual_seed(0)
    options = {"num_classes": 3, "width": 4}
    model = get_model("cifar_resnet20", **options)
    header = Header("cifar_resnet20", options, ("a", "b", "c"), Preprocessing(32, 28))
    modelfile.write(path, model.state_dict(), header)
    return path.read_bytes()


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> bytes:
    """A model file with calibration data."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    torch.manual_seed(0)
    options = {"num_classes": 3, "width": 4}
    model = get_model("cifar_resnet20", **options)
    header = Header(
        "cifar_resnet20", options, ("a", "b", "c"), Preprocessing(32, 28),
        calibration=Calibration.from_dict(CALIBRATION),
    )  # fmt: skip
    modelfile.write(path, model.state_dict(), header)
    return path.read_bytes()


def taken_apart(whole: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def put_together(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def with_entry(whole: bytes, **changes: object) -> bytes:
    """Return the file with other values in its resnetkit entry; None removes a key."""
    header, body = taken_apart(whole)
    content = {**json.loads(header["__metadata__"][KEY]), **changes}
    content = {key: value for key, value in content.items() if value is not ...}
    header["__metadata__"][KEY] = json.dumps(content)
    return put_together(header, body)


def prepared(**changes: object) -> dict[str, object]:
    return {**Preprocessing(32, 28).to_dict(), **changes}


NAN = float("nan")
ENTRIES = {
    **{f"{key} {value!r}": {key: value}
       for key in ("architecture", "options", "classes", "preprocessing", "metrics", "recipe",
                   "data", "format_version")
       for value in (None, 7.5, ..., "text", [1], {"a": [1]})
       if not (key == "metrics" and value == {"a": [1]})
       and not (key in ("recipe", "data") and value == {"a": [1]})},
    "unknown architecture": {"architecture": "resnet5000"},
    "version true": {"format_version": True},
    "newer": {"format_version": 3},
    "unknown option": {"options": {"num_classes": 3, "wings": 2}},
    "wide": {"options": {"num_classes": 3, "width": 10**9}},
    "wider": {"options": {"num_classes": 3, "width": 2**70}},
    "nan wide": {"options": {"num_classes": 3, "width": NAN}},
    "text wide": {"options": {"num_classes": 3, "width": "4"}},
    "many classes": {"options": {"num_classes": 10**12, "width": 4}},
    "long layers": {"architecture": "resnet18",
                    "options": {"num_classes": 3, "layers": [10**6] * 4}},
    "layers of lists": {"options": {"num_classes": 3, "width": 4, "shortcut": [[["A"]]]}},
    "sizes": {"preprocessing": prepared(crop_size="28")},
    "half sizes": {"preprocessing": prepared(crop_size=28.5)},
    "no size": {"preprocessing": prepared(resize_size=0)},
    "size true": {"preprocessing": prepared(resize_size=True)},
    "large sizes": {"preprocessing": prepared(resize_size=10**9, crop_size=10**9)},
    "nan mean": {"preprocessing": prepared(mean=[NAN, 0, 0])},
    "endless mean": {"preprocessing": prepared(mean=[float("inf"), 0, 0])},
    "mean of texts": {"preprocessing": prepared(mean=["a", "b", "c"])},
    "mean 3": {"preprocessing": prepared(mean=3)},
    "std 0": {"preprocessing": prepared(std=[1, 0, 1])},
    "two std": {"preprocessing": prepared(std=[1, 1])},
    "decoder": {"preprocessing": prepared(decoder="magic")},
    "decoder list": {"preprocessing": prepared(decoder=["full"])},
    "more preprocessing": {"preprocessing": prepared(magic=1)},
    "numbers for classes": {"classes": [1, 2, 3]},
    "fewer classes": {"classes": ["a", "b"]},
}  # fmt: skip


def matrix(*shape: int, value: float = 0.0) -> dict[str, object]:
    return Matrix.from_array(np.full(shape, value)).to_dict()


CALIBRATION = {"count": 3, "temperature": 1.5, "conformal": [0.0, 0.5, 1.0],
              "strangeness": [-1.0, 2.0, 3.0], "distance_scale": 0.5,
              "means": matrix(3, 16), "directions": matrix(2, 16)}  # fmt: skip
CALIBRATIONS = {
    **{f"calibration {value!r}": value for value in (None, 7.5, "text", [1], {}, {"a": [1]})},
    **{f"{key} {value!r}": {**CALIBRATION, key: value}
       for key, values in {
           "count": (None, 0, 10**400, -1, 2, 4, 3.0, True, "3", 10**30, NAN),
           "temperature": (None, 0, -1.0, NAN, float("inf"), True, "1", [1]),
           "conformal": (None, [], [0.0], [0.0, 0.5], [0.0, 0.5, 1.0, 2.0], [0.5, 0.0, 1.0],
                         [-0.1, 0.5, 1.0], [0.0, NAN, 1.0], [0.0, 0.5, float("inf")],
                         [0.0, "0.5", 1.0], [0.0, True, 1.0], [[0.0], 0.5, 1.0], "abc",
                         {"0": 0.0}, [0, 1, 10**400]),
           "distance_scale": (None, -1.0, NAN, True, "1", 10**400),
           "strangeness": (None, [1.0, 2.0], [3.0, 2.0, 1.0], [1.0, 2.0, NAN]),
           "means": (None, [], "text", {}, matrix(3, 15), matrix(16, 3), matrix(2, 16),
                     matrix(3, 16, value=NAN), matrix(3, 16, value=float("inf")),
                     {**matrix(3, 16), "shape": [3, 17]}, {**matrix(3, 16), "shape": [48]},
                     {**matrix(3, 16), "shape": [-3, -16]}, {**matrix(3, 16), "shape": [3.0, 16]},
                     {**matrix(3, 16), "shape": [2**62, 2**62]},
                     {**matrix(3, 16), "float32": "AAAA"}, {**matrix(3, 16), "float32": "?"},
                     {**matrix(3, 16), "float32": 7}, {**matrix(3, 16), "more": 1}),
           "directions": (None, matrix(2, 15), matrix(65, 16), matrix(2, 16, value=NAN)),
       }.items()
       for value in values},
    "more": {**CALIBRATION, "more": 1},
}  # fmt: skip


def refused(folder: Path, contents: bytes) -> str:
    path = folder / "bad.safetensors"
    path.write_bytes(contents)
    with pytest.raises(ModelFileError, match=r"bad\.safetensors") as raised:
        modelfile.read(path)
    return str(raised.value)


@pytest.mark.parametrize("case", ENTRIES)
def test_entries_of_the_header_are_checked(tmp_path, whole, case):
    refused(tmp_path, with_entry(whole, **ENTRIES[case]))


def test_invalid_headers_raise(tmp_path, whole):
    header, body = taken_apart(whole)
    deep = b"[" * 100_000 + b"]" * 100_000
    for text in (b"", b"{}", b"[]", b"null", b"7", b'"a"', b"{" * 1000, deep, b"\xff\xfe" * 9):
        refused(tmp_path, put_together(text, body))
        damaged = {**header, "__metadata__": {KEY: text.decode("latin-1")}}
        refused(tmp_path, put_together(damaged, body))
    for metadata in (None, [], "text", {KEY: 7}, {}, {KEY: {"format_version": 1}}):
        refused(tmp_path, put_together({**header, "__metadata__": metadata}, body))
    for claim in (0, 1, 2**40, 2**63, 2**64 - 1):
        refused(tmp_path, struct.pack("<Q", claim) + whole[8:])


def test_tensors_that_do_not_fit_raise(tmp_path, whole):
    header, body = taken_apart(whole)
    entry = header["fc.bias"]
    assert entry["dtype"] == "F32"
    changes = [
        {"dtype": "F64"}, {"dtype": "I32"}, {"dtype": "F4096"}, {"shape": [1, 3]}, {"shape": [-3]},
        {"shape": [2**62]}, {"shape": "3"}, {"shape": [3.0]}, {"data_offsets": [0, 2**62]},
        {"data_offsets": [12, 0]}, {"data_offsets": [-12, 0]}, {"data_offsets": []},
        {"dtype": None},
    ]  # fmt: skip
    for change in changes:
        refused(tmp_path, put_together({**header, "fc.bias": {**entry, **change}}, body))
    without = {name: value for name, value in header.items() if name != "fc.bias"}
    refused(tmp_path, put_together(without, body))
    refused(tmp_path, put_together({**header, "more": entry}, body))
    assert "cut short" in refused(tmp_path, whole[:-1])
    refused(tmp_path, whole + b"more")


def test_nan_and_infinite_values_raise(tmp_path, whole):
    header, body = taken_apart(whole)
    start, _ = header["fc.bias"]["data_offsets"]
    for number in (float("nan"), float("inf")):
        changed = body[:start] + struct.pack("<f", number) + body[start + 4 :]
        assert "fc.bias" in refused(tmp_path, put_together(header, changed))


@pytest.mark.parametrize("case", CALIBRATIONS)
def test_calibration_is_checked(tmp_path, calibrated, case):
    message = refused(tmp_path, with_entry(calibrated, calibration=CALIBRATIONS[case]))
    assert "calibration" in message or "header is damaged" in message


def test_calibration_that_fits_is_read(tmp_path, calibrated):
    path = tmp_path / "m.safetensors"
    for directions in (matrix(0, 16), matrix(2, 16), matrix(64, 16)):
        path.write_bytes(
            with_entry(calibrated, calibration={**CALIBRATION, "directions": directions})
        )
        _, header = modelfile.read(path)
        assert header.calibration.directions.to_dict() == directions


def mutated(whole: bytes, folder: Path, chances: int) -> None:
    """Read ``chances`` mutated files under a memory limit; runs in its own process."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    (length,) = struct.unpack("<Q", whole[:8])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    edit = st.tuples(st.integers(0, length + 7), st.binary(min_size=1, max_size=3))

    @settings(max_examples=chances, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.lists(edit, min_size=1, max_size=4), st.integers(0, 3), st.integers(0, len(whole)))
    def one(edits, cut, end):
        changed = bytearray(whole)
        for at, put in edits:
            changed[at : at + len(put)] = put
        path = folder / "m.safetensors"
        path.write_bytes(changed if cut else changed[:end])
        try:
            modelfile.read(path)
        except ModelFileError as error:
            message = str(error)
        else:
            return
        assert str(path) in message

    one()


@pytest.mark.slow
def test_mutated_files_do_no_harm(tmp_path, whole):
    (tmp_path / "whole").write_bytes(whole)
    program = (
        "import runpy, sys, pathlib; f = pathlib.Path(sys.argv[2]); "
        "runpy.run_path(sys.argv[1])['mutated']((f / 'whole').read_bytes(), f, 1500)"
    )
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-6000:]
