"""Bulk prediction on Ray gives the rows of ``resnet predict``, even after kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from resnetkit.errors import ModelFileError, RecipeError
from resnetkit.scale import BatchPredictor
from resnetkit.scale.ray_data import _Actor, check_model, resolve_address
from resnetkit.storage import sha256

parquet = pytest.importorskip("pyarrow.parquet", reason="bulk prediction needs the extra ray")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LOOPBACK = {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"}
EXACT = ("--engine", "eager", "--precision", "fp32", "--device", "cpu")


def rows_in(folder):
    """Return the rows in a folder by source; no source may have two rows."""
    rows = parquet.read_table(folder).to_pylist() if list(folder.glob("part-*")) else []
    by_source = {row.pop("source"): row for row in rows}
    assert len(by_source) == len(rows)
    return by_source


def local_rows(*arguments, cwd=None):
    done = subprocess.run(
        [sys.executable, "-m", "resnetkit", "predict", *map(str, arguments), *EXACT],
        capture_output=True,
        cwd=cwd,
    )
    assert done.returncode in (0, 3), done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row.pop("source"): row for row in rows}


def check_equal(found, expected):
    """Check that rows are equal, except for differences in rounding between batches."""
    assert found.keys() == expected.keys()
    for source, wanted in expected.items():
        row = {**found[source]}
        assert bool(row.pop("version")) == os.path.exists(source)
        probabilities = [one.pop("probability") for one in (*row["top"], row)]
        wanted = json.loads(json.dumps(wanted))
        expected_values = [one.pop("probability") for one in (*wanted["top"], wanted)]
        assert row == wanted
        assert probabilities == pytest.approx(expected_values, abs=1e-5)


def test_an_actor_lets_threads_spin_only_for_a_short_time(tmp_path, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "restored at the end")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.chdir(tmp_path)
    _Actor(BatchPredictor("model.safetensors"), "digest", str(tmp_path))
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


@needs_ray
@linux
@pytest.mark.slow
def test_rows_are_those_of_predict_and_a_restart_adds_what_is_missing(
    start, tiny_model, flat_folder, tmp_path
):
    (flat_folder / "bad.png").write_bytes(b"not an image")
    before = set(Path("/tmp").glob("resnet-*"))
    arguments = (tiny_model, "squares", "gone.png", "squares/red/000.png", "--top-k", 2)
    command = ("-m", "resnetkit", "predict", *arguments, *EXACT, "--on", "ray", "--out", "rows")
    running = start(*command, cwd=tmp_path)
    addresses = set()
    seen = {}
    while running.process.poll() is None:
        addresses |= running.listening()
        seen |= {pid: name for pid, name in running.tree().items() if name}  # zombies have no name
        time.sleep(0.2)
    code, output, errors = running.finish()
    assert (code, output) == (3, ""), errors
    assert "rows: 50 rows, 2 of them with an error" in errors
    assert any("raylet" in name for name in seen.values())
    assert addresses
    assert addresses <= LOOPBACK
    assert set(Path("/tmp").glob("resnet-*")) <= before
    expected = local_rows(*arguments, cwd=tmp_path)
    found = rows_in(tmp_path / "rows")
    assert len(found) == 50
    at = {str(tmp_path / source): row for source, row in found.items()}
    check_equal(at, {str(tmp_path / source): row for source, row in expected.items()})

    for name in ("100.png", "101.png"):
        shutil.copy(flat_folder / "red" / "000.png", flat_folder / "red" / name)
    code, _, errors = start(*command, cwd=tmp_path).finish()
    assert code == 3, errors
    second = parquet.read_table(tmp_path / "rows" / "part-000001.parquet")["source"].to_pylist()
    assert sorted(second) == ["squares/red/100.png", "squares/red/101.png"]
    assert len(rows_in(tmp_path / "rows")) == 52

    code, _, errors = start(*command, "--threshold", 0.9, cwd=tmp_path).finish()
    assert code == 1
    assert "rows with threshold 0.0; now it is 0.9" in errors


RUN = """
import sys
from pathlib import Path
from resnetkit.cli.sources import expand_sources
from resnetkit.scale import BatchPredictor, listing
from resnetkit.scale.listing import list_items
from resnetkit.scale.ray_data import predict_on_ray

listing.BLOCK_BYTES = 16 * listing.LEAST_BYTES
model, images, out = sys.argv[1:]
predictor = BatchPredictor(model, engine="eager", precision="fp32", device="cpu")
items = list_items([images], expand_sources)
predict_on_ray(predictor, items, Path(out), seconds=0.1)
"""


@needs_ray
@linux
@pytest.mark.slow
def test_kills(start, tiny_model, save, tmp_path):
    """A killed actor is replaced in the same run; after other kills, the same command continues."""
    images = save(tmp_path / "squares", 200)
    out = tmp_path / "rows"
    rng = random.Random(0)
    codes = {}
    for victim in ("MapWorker", "driver", "raylet/raylet", "nobody"):
        running = start("-c", RUN, tiny_model, images, out)
        before = len(list(out.glob("part-*")))
        deadline = time.monotonic() + 120
        while running.process.poll() is None and time.monotonic() < deadline:
            actors = [pid for pid, name in running.tree().items() if "MapWorker" in name]
            if actors and len(list(out.glob("part-*"))) > before:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        names = {running.process.pid: "driver", **running.tree()}
        for pid in [pid for pid, name in names.items() if victim in name][:1]:
            os.kill(pid, signal.SIGKILL)
        codes[victim], _, errors = running.finish()
        check = rows_in(out)  # checks that no image has two rows
        assert check
        if victim == "MapWorker":
            assert codes[victim] == 0, errors
            assert len(check) == 600
            shutil.rmtree(out)
    assert codes["driver"] == -signal.SIGKILL
    assert codes["nobody"] == 0
    check_equal(rows_in(out), local_rows(tiny_model, images))


@needs_ray
@linux
@pytest.mark.slow
def test_sigterm_writes_what_arrived(start, tiny_model, save, tmp_path):
    images = save(tmp_path / "squares", 400)
    command = ("-m", "resnetkit", "predict", tiny_model, images, "--on", "ray", "--out")
    running = start(*command, tmp_path / "rows")
    while running.process.poll() is None:
        if any("MapWorker" in name for name in running.tree().values()):
            break
        time.sleep(0.05)
    below = running.tree()
    running.process.terminate()
    code, output, errors = running.finish()
    assert (code, output) == (143, ""), errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
    rows_in(tmp_path / "rows")


def test_addresses():
    assert resolve_address("ray") == "local"
    for address in ("ray://head:10001", "ray://127.0.0.1:1", "ray://[::1]:10001"):
        assert resolve_address(address) == address
    for address in ("spark", "ray://", "ray://head", "ray://a/b:1", "local", "RAY"):
        with pytest.raises(RecipeError, match="ray://HOST:PORT"):
            resolve_address(address)


def test_every_host_must_have_the_same_model_file(tiny_model, tmp_path):
    check_model(tiny_model, sha256(tiny_model))
    with pytest.raises(ModelFileError, match="has the SHA-256"):
        check_model(tiny_model, "0" * 64)
    with pytest.raises(ModelFileError, match=r"does not exist. Copy the model file"):
        check_model(tmp_path / "gone", "0" * 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--on", "spark", "--out", "rows"), "--on must be ray or ray://HOST:PORT"),
        (("--on", "ray"), "Name it with --out DIR"),
        (("--on", "ray", "--out", "rows", "--resume"), "--resume cannot be used with --on"),
        (("--on", "ray", "--out", "rows", "--coverage", "0.9"), "calibration"),
    ],
)
def test_error_messages(tiny_model, tmp_path, arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "resnetkit", "predict", tiny_model, "a.png", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
