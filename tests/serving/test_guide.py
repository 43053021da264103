"""docs/serving.md: its limits are the real ones, and its clients work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resnetkit.serving.bounds import Bounds

from .conftest import Running, png

GUIDES = sorted((Path(__file__).parents[2] / "docs").glob("serving*.md"))
ENGLISH = GUIDES[0]


def code(path: Path, language: str) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)[0]


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_the_limits_are_those_of_the_code(path):
    b = Bounds()
    expected = [
        f"{b.body_bytes // 2**20} MiB", f"{b.bodies_bytes // 2**20} MiB",
        f"{b.header_bytes // 2**10} KiB", f"{b.request_images}", f"{b.image_pixels:,}",
        f"{b.queue_images}", f"{b.queue_pixels:,}", f"{b.batch_images}", f"{b.connections}",
        f"{b.header_seconds:g} s", f"{b.body_seconds:g} s", f"{b.write_seconds:g} s",
        f"{b.idle_seconds} s", f"{b.deadline_seconds:g} s",
    ]  # fmt: skip
    text = path.read_text("utf-8")
    table = re.search(r"^\| body of a request .*?\n\n|^\| 一个请求体 .*?\n\n", text, re.M | re.S)[0]
    values = [re.split(r"[,，](?!\d)", row.split(" | ")[1].rstrip(" |"))[0]
              for row in table.strip().splitlines()]  # fmt: skip
    assert values == expected
    assert f"{b.batch_seconds:g} s" in table
    assert f"{b.most_deadline_seconds:g} s" in table
    assert f"{b.stuck_seconds:g} s" in text
    assert f"{b.notice_seconds:g} s" in text
    assert b.stop_seconds + 7 <= 25
    assert "25 s" in text


def test_both_guides_have_the_same_code():
    for language in ("py", "js", "nginx", "ini", "dockerfile"):
        assert code(GUIDES[0], language) == code(GUIDES[1], language)


def run(server: Running, *command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def address(server: Running) -> str:
    return "http://{}:{}".format(*server.address)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(png())
    (tmp_path / "other.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "text.jpg").write_text("no image")
    return tmp_path / "photo.jpg"


def test_the_python_client_works(server, photo):
    client = code(ENGLISH, "py").replace("http://127.0.0.1:8000", address(server))
    assert len(client.strip().splitlines()) <= 12
    use = f"\nprint(json.dumps(classify({str(photo)!r})))"
    assert json.loads(run(server, sys.executable, "-c", client + use))["error"] is None
    use = f"\nclassify({str(photo.with_name('text.jpg'))!r})"
    done = subprocess.run([sys.executable, "-c", client + use], capture_output=True, text=True)
    assert "ValueError: Not an image" in done.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_javascript_client_works(server, photo, tmp_path):
    client = code(ENGLISH, "js").replace("http://127.0.0.1:8000", address(server))
    use = f"\nconsole.log(JSON.stringify(await classify({json.dumps(str(photo))})));"
    (tmp_path / "client.mjs").write_text(client + use)
    assert json.loads(run(server, "node", str(tmp_path / "client.mjs")))["error"] is None


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_commands_work(server, photo):
    commands = [
        line[2:].replace("http://127.0.0.1:8000", address(server))
        for line in ENGLISH.read_text("utf-8").splitlines()
        if line.startswith("$ curl ")
    ]
    found = []
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=photo.parent, capture_output=True, text=True, timeout=60
        )
        found.append(json.loads(done.stdout))
    one, several = found
    assert one["error"] is None
    assert [row["source"] for row in several] == ["photo.jpg", "other.png"]
