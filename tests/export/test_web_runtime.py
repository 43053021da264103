"""The web page's runtime: where its files come from, and what is refused."""

from __future__ import annotations

import sys
import tarfile

import pytest

from resnetkit.errors import ArtefactError, OutputError, RecipeError
from resnetkit.export import web


def write_dist(folder):
    folder.mkdir(parents=True)
    for name in web.RUNTIME_FILES:
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """Return the package of two small files that a fake npm delivers."""
    if sys.platform == "win32":
        pytest.skip("the fake npm is a shell script")
    dist = write_dist(tmp_path / "package" / "dist")
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        archive.add(dist, "package/dist")
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n/bin/cp {package} ./one.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RESNETKIT_OFFLINE")
    return package


def test_a_folder_gives_the_files_by_their_names_in_the_page(tmp_path):
    files = web.runtime_files(write_dist(tmp_path / "dist"))
    assert {name: path.name for name, path in files.items()} == {
        "ort.wasm.bundle.min.js": "ort.wasm.bundle.min.mjs",
        "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
    }


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"(?s)has no ort\.wasm.* --runtime package/dist"):
        web.runtime_files(tmp_path)


def test_npm_is_asked_once_for_the_pinned_version(fake_npm, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "_check_integrity", lambda archive: None)
    first = web.runtime_files()
    assert all(path.is_relative_to(tmp_path / "cache") for path in first.values())
    assert (tmp_path / "arguments").read_text().startswith("pack onnxruntime-web@1.30.0 ")
    (tmp_path / "bin" / "npm").unlink()
    assert web.runtime_files() == first


def test_another_package_is_refused(fake_npm, tmp_path):
    with pytest.raises(RecipeError, match=r"its integrity is sha512-.*, not sha512-q0y"):
        web.runtime_files()
    assert not list((tmp_path / "cache").rglob("*.wasm"))


def test_without_npm_the_message_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match=r"npm is not installed") as caught:
        web.runtime_files()
    assert "npm pack onnxruntime-web@1.30.0\n" in str(caught.value)
    assert "--runtime package/dist" in str(caught.value)


def test_offline_npm_is_not_asked(fake_npm, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNETKIT_OFFLINE", "1")
    with pytest.raises(RecipeError, match="RESNETKIT_OFFLINE is set"):
        web.runtime_files()
    assert not (tmp_path / "arguments").exists()


def test_a_folder_with_files_is_refused_before_anything_else(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        web.export_web(tmp_path / "missing.safetensors", tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"


def test_a_worse_8_bit_file_is_kept_next_to_the_page(tmp_path, monkeypatch):
    def export(model_file, to, out, **settings):
        worse = out.with_name("model-worse.onnx")
        worse.write_bytes(b"worse")
        raise ArtefactError(f"int8 is worse than fp32. The file was kept as {worse}")

    monkeypatch.setattr(web, "export", export)
    kept = tmp_path / "page-worse.onnx"
    with pytest.raises(ArtefactError) as raised:
        web.export_web("m.safetensors", tmp_path / "page", runtime=write_dist(tmp_path / "dist"))
    assert str(raised.value).endswith(f"kept as {kept}")
    assert kept.read_bytes() == b"worse"
    assert not (tmp_path / "page").exists()
