"""The examples in docs/scale.md run, and give the same answers as the predictor."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import resnetkit

parquet = pytest.importorskip("pyarrow.parquet", reason="bulk prediction needs the extra ray")
GUIDES = [Path(__file__).parents[2] / "docs" / name for name in ("scale.md", "scale.zh-CN.md")]


def example(library):
    (found,) = (
        block
        for block in re.findall(r"^```py\n(.*?)^```", GUIDES[0].read_text("utf-8"), re.M | re.S)
        if re.search(rf"^(import|from) {library}\b", block, re.M)
    )
    return found


def test_both_guides_have_the_same_examples():
    english, chinese = (
        re.findall(r"^```py\n(.*?)^```", path.read_text("utf-8"), re.M | re.S) for path in GUIDES
    )
    assert english == chinese
    assert len(english) == 4


@pytest.mark.slow
@pytest.mark.parametrize("library", ["ray", "daft", "pyspark"])
def test_example(library, tiny_model, flat_folder, tmp_path):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    (tmp_path / "demo" / "digits").mkdir(parents=True)
    shutil.copytree(flat_folder, tmp_path / "demo" / "digits" / "test")
    (tmp_path / "demo" / "run").mkdir()
    model = shutil.copy(tiny_model, tmp_path / "demo" / "run")
    done = subprocess.run(
        [sys.executable, "-c", example(library)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={
            **os.environ,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback
            "RAY_ADDRESS": "local",  # not a cluster that this machine happens to run
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYSPARK_PYTHON": sys.executable,
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = tmp_path.glob("*-answers")
    rows = parquet.read_table(folder).to_pylist()
    found = {}
    for row in rows:
        answer = row.get("answer", row)
        path = row["path"].removeprefix("file://")
        found[os.path.join(tmp_path, path)] = (answer["class"], answer["probability"])
    paths = sorted(map(str, (tmp_path / "demo" / "digits" / "test").rglob("*.png")))
    assert sorted(found) == paths
    for answer in resnetkit.load(model, "cpu")(paths):
        name, probability = found[answer.source]
        assert name == answer.class_name
        assert probability == pytest.approx(answer.probability, abs=0.02)  # another engine
