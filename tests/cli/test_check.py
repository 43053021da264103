from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from .command import resnet


def check(*arguments):
    return resnet("check", *arguments, text=True)


@pytest.fixture
def photos(tmp_path):
    for c, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng([c, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)
            image.save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_a_dataset_without_problems_exits_with_0(photos):
    done = check(photos)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{photos}: images 40 (all), 2 classes\nNo problems found.\n"


def test_warnings_exit_with_0_and_errors_with_1(photos):
    shutil.copy(photos / "cat/0.png", photos / "cat/new\nline [1].png")
    done = check(photos)
    assert done.returncode == 0
    assert "warning       1  exactly the same image more than once in a class" in done.stdout
    assert "cat/0.png = cat/new\\nline [1].png" in done.stdout
    for number in range(6):
        (photos / f"dog/{number}.png").write_text("no picture")
    done = check(photos, "--workers", "0")
    assert done.returncode == 1
    assert done.stdout.index("error         6  images that") < done.stdout.index("\nwarning")
    assert "dog/3.png: holds text, not an image" in done.stdout
    assert "and 2 more; list all with --format json" in done.stdout


def test_json_lists_every_image(photos):
    for number in range(6):
        (photos / f"dog/{number}.png").write_text(f"no picture {number}")
    done = check(photos, "--format", "json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["pictures"] == {"all": {"cat": 20, "dog": 20}}
    (broken,) = [f for f in found["findings"] if f["level"] == "error"]
    assert broken["kind"] == "unreadable"
    assert sorted(broken["groups"]) == [[f"dog/{number}.png"] for number in range(6)]
    assert len(broken["details"]) == 6


def test_help_explains_the_exit_code():
    done = check("--help")
    assert done.returncode == 0
    assert "exits with code 1" in " ".join(done.stdout.split())


def test_a_missing_folder():
    done = check("nowhere/photos")
    assert done.returncode == 1
    assert "does not exist" in done.stderr
