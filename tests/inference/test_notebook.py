from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnetkit
from resnetkit.inference.prediction import Prediction

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PIXELS = np.zeros((30, 60, 3), np.uint8)
EVIL = '<script>alert("1")</script>&'


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.words = []
        self.open = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)


def make_answer(name=EVIL, source=EVIL, **more):
    top = ((name, 0.75), ("tulip", 0.25))
    return Prediction(source, top, "0" * 12, image=PIXELS, **more)


def test_a_card_is_escaped_and_self_contained():
    page = make_answer()._repr_html_()
    found = Tags(page)
    assert not found.open
    assert {tag for tag, _ in found.tags} <= {"div", "b", "img", "table", "tr", "td"}
    assert found.words == [EVIL, EVIL, EVIL, "75.0%", "tulip", "25.0%"]
    widths = re.findall(r"width:([\d.]+)%", page)
    assert widths == ["75.0", "25.0"]
    (image,) = (attributes for tag, attributes in found.tags if tag == "img")
    assert image["src"].startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) as shown:
        assert shown.size == (160, 80)
    assert "http" not in page


def test_errors_unknown_and_deleted_files():
    page = Prediction(EVIL, (), "", f"{EVIL}: empty")._repr_html_()
    assert Tags(page).words == [EVIL, f"{EVIL}: empty"]
    assert "<b>unknown</b>" in make_answer(threshold=0.9)._repr_html_()
    gone = Prediction("gone.png", (("rose", 1.0),), "", image="gone.png")
    assert "no longer available" in gone._repr_html_()


def test_long_lists_are_cut(trained):
    images = sorted((trained.parent / "data").rglob("*.png"))
    answers = resnetkit.load(trained / "model.safetensors")(images)
    page = answers._repr_html_()
    assert isinstance(answers, list)
    assert page.count("<img") == 50
    assert "and 10 more" in page
    assert not Tags(page).open


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
def test_a_browser_shows_the_bars(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    page_file = Path(tmp_path / "page.html")
    page_file.write_text(
        f"<meta charset=utf-8>{make_answer(name='花 rose')._repr_html_()}", "utf-8"
    )
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        long, short = (page.locator("td div div").nth(i).bounding_box()["width"] for i in range(2))
        assert page.locator("img").evaluate("i => i.complete && i.naturalWidth") == 160
        browser.close()
    assert long == pytest.approx(3 * short, rel=0.02)
    assert [url.split(":")[0] for url in requests if not url.startswith("data:")] == ["file"]
