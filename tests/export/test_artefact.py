"""Reading damaged, hostile or newer exported files raises an `ArtefactError`."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from resnetkit import load
from resnetkit.errors import ArtefactError
from resnetkit.export import protobuf
from resnetkit.export.artefact import GOLDEN, MANIFEST, Manifest, read_artefact
from resnetkit.export.export import export
from resnetkit.export.verify import verify
from resnetkit.export.writers import write

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory):
    """An exported file in each format."""
    folder = tmp_path_factory.mktemp("files")
    return {
        to: export(tiny_model, to, folder / f"model{ending}", golden="made").path
        for to, ending in (("onnx", ".onnx"), ("openvino", ".xml"), ("torch", ".pt2"))
    }


@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_every_format_holds_the_same(files, to):
    artefact = read_artefact(files[to])
    reference = read_artefact(files["onnx"])
    same = ("classes", "preprocessing", "source", "entrance", "tolerances", "calibration", "data")
    for name in same:
        assert getattr(artefact.manifest, name) == getattr(reference.manifest, name)
    assert [image.to_dict() for image in artefact.golden] == [
        image.to_dict() for image in reference.golden
    ]
    assert 16 <= len(artefact.golden) <= 32
    assert artefact.manifest.preprocessing.decoder == "full"


def test_a_manifest_reads_back_equal(files):
    manifest = read_artefact(files["onnx"]).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(manifest.to_json()).to_json() == manifest.to_json()


def changed_manifest(**values):
    content = {**json.loads(Manifest("image", ("a",), _preprocessing()).to_json()), **values}
    return json.dumps(content)


def _preprocessing():
    from resnetkit.data.preprocessing import Preprocessing

    return Preprocessing(32, 32, decoder="full")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format_version": 99}, "Upgrade it"),
        ({"format_version": True}, "no format_version"),
        ({"entrance": "tensor"}, "not image or crop"),
        ({"classes": [1, 2]}, "classes"),
        ({"classes": "ab"}, "classes is str"),
        ({"tolerances": {"levels": 1}}, "tolerances"),
        ({"preprocessing": {"resize_size": -1, "crop_size": 3}}, "preprocessing"),
        ({"calibration": {"count": 3}}, "calibration"),
        ({"data": None}, "data is NoneType"),
    ],
)
def test_a_damaged_description_is_named(values, message):
    with pytest.raises(ArtefactError, match=message):
        Manifest.from_json(changed_manifest(**values))


def test_tensors_in_another_file_are_never_read(files, tmp_path):
    model = onnx.load(files["onnx"])
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(10_000))
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    pair = tensor.external_data.add()
    pair.key, pair.value = "location", "../secret.bin"
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside" / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="tensors in another file"):
        read_artefact(path)


def test_external_tensors_are_found_in_nested_graphs(files, tmp_path):
    model = onnx.load(files["onnx"])
    tensor = onnx.TensorProto(name="t", data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    inner = onnx.helper.make_graph([], "inner", [], [], [tensor])
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    model.graph.node.append(node)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="tensors in another file"):
        read_artefact(path)


def protobuf_number(value, size=1):
    """Encode a number in at least ``size`` bytes."""
    encoded = [value >> shift & 127 for shift in range(0, max(7 * size, value.bit_length(), 1), 7)]
    return bytes([byte | 128 for byte in encoded[:-1]] + encoded[-1:])


@pytest.mark.parametrize("bit", [32, 34, 40])
def test_external_tensors_behind_tags_that_other_readers_cut_are_found(files, tmp_path, bit):
    model = onnx.load(files["onnx"])
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1])
    location = onnx.StringStringEntryProto(key="location", value="secret.bin").SerializeToString()
    tags = (13 << 3 | 2 | 1 << bit, 14 << 3 | 1 << bit)
    hidden = protobuf_number(tags[0]) + protobuf_number(len(location)) + location
    hidden += protobuf_number(tags[1]) + b"\x01"
    content = tensor.SerializeToString() + hidden
    graph = protobuf_number(5 << 3 | 2) + protobuf_number(len(content)) + content
    path = tmp_path / "model.onnx"
    whole = model.SerializeToString()
    path.write_bytes(whole + protobuf_number(7 << 3 | 2) + protobuf_number(len(graph)) + graph)
    with pytest.raises(ArtefactError, match=r"protobuf (field number|number is too long)"):
        read_artefact(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00", "field number"),
        (protobuf_number(8, size=6) + b"\x01", "too long"),
        (b"\x08" + protobuf_number(1, size=11), "too long"),
        (b"\x08" + protobuf_number(1 << 64), "too long"),
        (b"\x12" + protobuf_number(1, size=6) + b"a", "too long"),
        (b"\x0b\x0c", "unknown type 3"),
        (b"\x12\xff\xff\xff\xff\x07a", "cut short"),
    ],
)
def test_what_protobuf_readers_disagree_about_is_refused(content, message):
    with pytest.raises(ArtefactError, match=message):
        list(protobuf.fields(memoryview(content)))


@pytest.mark.parametrize("kind", ["function", "training", "sparse", "sparse list"])
def test_whatever_else_could_hold_tensors_is_refused(files, tmp_path, kind):
    model = onnx.load(files["onnx"])
    tensor = onnx.TensorProto(name="t", data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    node = onnx.helper.make_node("Constant", [], ["y"])
    attribute = node.attribute.add(name="value")
    if kind == "function":
        attribute.t.CopyFrom(tensor)
        model.functions.add(name="f", domain="d").node.append(node)
    elif kind == "training":
        model.training_info.add().algorithm.initializer.append(tensor)
    else:
        sparse = attribute.sparse_tensors.add() if "list" in kind else attribute.sparse_tensor
        sparse.values.CopyFrom(tensor)
        model.graph.node.append(node)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="which `resnet export` does not write"):
        read_artefact(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.onnx", b"", "empty"),
        ("a.onnx", b"\xff" * 100, "protobuf"),
        ("a.onnx", b"\x08\x01", "was not written by `resnet export`"),
        ("a.pt2", b"PK\x03\x04", "archive is damaged"),
        ("a.xml", b"<net/>", "its other half"),
        ("a.txt", b"", "expected .onnx, .xml or .pt2"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=message):
        read_artefact(tmp_path / name)


def test_xml_entities_are_refused(tmp_path):
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><net>&b;</net>'
    (tmp_path / "a.xml").write_bytes(bomb)
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(ArtefactError, match="entities"):
        read_artefact(tmp_path / "a.xml")
    declaration = b'<?xml version="1.0" encoding="UTF-16"?>'
    for encoding in ("utf-16", "utf-16-be"):
        (tmp_path / "a.xml").write_bytes((declaration + bomb).decode().encode(encoding))
        with pytest.raises(ArtefactError, match="UTF-8"):
            read_artefact(tmp_path / "a.xml")


def test_a_large_entry_of_an_archive_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("resnetkit.export.artefact.MAX_TEXT", 1000)
    with zipfile.ZipFile(tmp_path / "a.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"m/extra/{MANIFEST}.json", "x" * 1001)
    with pytest.raises(ArtefactError, match="larger than"):
        read_artefact(tmp_path / "a.pt2")


def test_a_golden_image_of_another_model_is_refused(files, tmp_path):
    model = onnx.load(files["onnx"])
    golden = next(item for item in model.metadata_props if item.key == GOLDEN)
    content = json.loads(golden.value)
    content["images"][0]["logits"] = content["images"][0]["logits"][:8]
    golden.value = json.dumps(content)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtefactError, match="golden image is damaged"):
        read_artefact(tmp_path / "model.onnx")


TRY = """
import sys
from pathlib import Path
from resnetkit.errors import ResnetkitError
from resnetkit.export.artefact import read_artefact
from resnetkit.export.verify import verify

folder = Path(sys.argv[1])
counts = {}
for path in sorted(folder.glob("*" + sys.argv[2])):
    print(path.name, flush=True)
    try:
        report = verify(read_artefact(path), threads=1)
        outcome = "agrees" if report.agrees else "disagrees"
    except ResnetkitError as error:
        outcome = "error"
        assert str(path) in str(error), error
    counts[outcome] = counts.get(outcome, 0) + 1
print(counts)
"""


def mutated(content, rng):
    """Return a copy with changed, removed, repeated or random bytes."""
    data = bytearray(content)
    kind = rng.randrange(5)
    # Most bytes are weights and images; half of the changes are near the ends of the file.
    spans = [(0, 3000), (len(data) - 3000, len(data)), (0, len(data)), (0, len(data))]
    low, high = rng.choice(spans)
    position = rng.randrange(max(0, low), high)
    length = rng.choice([1, 2, 8, 100, 2000])
    if kind == 0:
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(max(0, low), high)] = rng.randrange(256)
    elif kind == 1:
        del data[position:]
    elif kind == 2:
        del data[position : position + length]
    elif kind == 3:
        data[position:position] = data[position : position + length]
    else:
        data[position : position + length] = rng.randbytes(length)
    return bytes(data)


def try_mutations(source, folder, count, seed):
    """Verify mutated files in a separate process; return its exit code and output.

    In every fourth copy of OpenVINO's two files, the second is mutated.
    """
    rng = random.Random(seed)
    folder.mkdir()
    content = source.read_bytes()
    for number in range(count):
        path = folder / f"{number:06}{source.suffix}"
        path.write_bytes(mutated(content, rng))
        if source.suffix == ".xml":
            weights = source.with_suffix(".bin").read_bytes()
            if number % 4 == 0:
                path.write_bytes(content)
                weights = mutated(weights, rng)
            path.with_suffix(".bin").write_bytes(weights)
    done = subprocess.run(
        [sys.executable, "-c", TRY, folder, source.suffix],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    for path in folder.iterdir():
        path.unlink()
    return done


def small_golden(path, model, folder):
    """Write a copy with two golden images, so that each of many mutations is verified quickly."""
    artefact = read_artefact(path)
    target = folder / f"source{path.suffix}"
    write(target, load(model).model, artefact.manifest, artefact.golden[:2])
    return target


@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_mutated_files_end_in_a_named_error(files, tiny_model, tmp_path, to):
    source = small_golden(files[to], tiny_model, tmp_path)
    done = try_mutations(source, tmp_path / "many", 150 if to == "onnx" else 30, seed=0)
    assert done.returncode == 0, (done.stdout[-300:], done.stderr[-2000:])
    assert "error" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "rounds", "count"), [("onnx", 10, 950), ("openvino", 1, 300), ("torch", 1, 200)]
)
def test_ten_thousand_mutated_files(files, tiny_model, tmp_path, to, rounds, count):
    source = small_golden(files[to], tiny_model, tmp_path)
    for seed in range(1, rounds + 1):
        done = try_mutations(source, tmp_path / str(seed), count, seed)
        assert done.returncode == 0, (done.stdout[-300:], done.stderr[-2000:])


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(path):
    content = io.BytesIO()
    torch.save(Evil(path), content)
    return content.getvalue()


def in_json(change):
    """Return a function that changes the JSON in a member of an archive."""

    def changed(data, marker):
        content = json.loads(data)
        change(content, marker)
        return json.dumps(content).encode()

    return changed


def pickle_a_weight(config, marker):
    entry = next(iter(config["config"].values()))
    entry["use_pickle"] = True


def open_a_file(program, marker):
    node = next(n for n in program["graph_module"]["graph"]["nodes"] if "arange" in n["target"])
    node["target"] = "torch.ops.aten.from_file.default"


def compute_a_size(program, marker):
    values = program["graph_module"]["graph"]["sym_int_values"]
    next(iter(values.values()))["as_expr"]["expr_str"] = (
        f"__import__('pathlib').Path({str(marker)!r}).touch() or Integer(3)"
    )


def add_a_guard(program, marker):
    program["guards_code"] = [f"__import__('pathlib').Path({str(marker)!r}).touch() is None"]


def define_a_type(program, marker):
    program["graph_module"]["treespec_namedtuple_fields"] = {"a": {"field_names": ["x"]}}


HOSTILE = {
    "pickled weight": (
        "weights/model_weights_config.json",
        in_json(pickle_a_weight),
        "is a pickle",
    ),
    "pickled input": ("sample_inputs/model.pt", lambda data, marker: pickled(marker), "damaged"),
    "file": ("models/model.json", in_json(open_a_file), "from_file"),
    "size": ("models/model.json", in_json(compute_a_size), "__import__"),
    "type": ("models/model.json", in_json(define_a_type), "types"),
}


def rewritten(source, target, member, change):
    """Copy an archive with a change to one member."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename.endswith(member) else data)


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_code_in_a_pt2_file_is_run(files, tmp_path, kind):
    member, change, reason = HOSTILE[kind]
    marker = tmp_path / "marker"
    path = tmp_path / "model.pt2"
    rewritten(files["torch"], path, member, lambda data: change(data, marker))
    with pytest.raises(ArtefactError, match=reason) as error:
        verify(read_artefact(path))
    assert str(path) in str(error.value)
    assert not marker.exists()


def test_guards_and_foreign_members_of_a_pt2_file_are_left_out(files, tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "model.pt2"
    add = in_json(add_a_guard)
    rewritten(files["torch"], path, "models/model.json", lambda data: add(data, marker))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/constants/opaque_obj_0", pickled(marker))
        archive.writestr("archive/data/aotinductor/model/model.so", b"code")
    assert verify(read_artefact(path)).agrees
    assert not marker.exists()


def test_files_do_not_say_where_they_were_made(files):
    for path in files.values():
        contents = [path.read_bytes()]
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                contents = [archive.read(name) for name in archive.namelist()]
        for content in contents:
            assert b"site-packages" not in content
            assert b"graph.py" not in content
