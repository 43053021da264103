"""The report in a real browser: Debian's Chromium, headless."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resnetkit import evaluate
from resnetkit.report import html
from resnetkit.report.sources import write_report

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM.exists() and not os.environ.get("CI"),
        reason="needs /usr/bin/chromium: apt-get install chromium",
    ),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def reports(trained, tmp_path_factory):
    """A run's own report, a report on all its images, and a comparison."""
    folder = tmp_path_factory.mktemp("reports")
    found = evaluate(trained / "model.safetensors", trained.parent / "data", "all", calibrate=True)
    html.write_page(folder / "all.html", found, trained / "model.safetensors")
    write_report([trained, trained / "last.safetensors"], out=folder / "two.html")
    return {"run": trained / "report.html", "all": folder / "all.html", "two": folder / "two.html"}


@pytest.fixture
def open_page(browser):
    """Open a page at a width; fail on console messages, errors and network requests."""
    pages = []
    problems = []

    def open_file(file, width):
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:")) or problems.append(request.url)
            ),
        )
        page.goto(file.as_uri())
        return page

    yield open_file
    for page in pages:
        page.close()
    assert problems == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["run", "all", "two"])
def test_the_page_fits_and_every_image_is_shown(open_page, reports, which, width):
    page = open_page(reports[which], width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    sizes = page.evaluate(
        "[...document.querySelectorAll('p,td,th,figcaption')].filter((e) => e.textContent.trim())"
        ".map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 13


def test_tables_sort_and_filter(open_page, reports):
    page = open_page(reports["all"], 1280)

    def column(number):
        cells = page.locator(f"#per-class tbody tr:visible td:nth-child({number})")
        return cells.all_inner_texts()

    assert column(1) == ["blue", "green", "red"]
    page.locator("#per-class").get_by_role("button", name="class", exact=True).dblclick()
    assert column(1) == ["red", "green", "blue"]
    page.locator("#per-class").get_by_role("button", name="F1", exact=True).click()
    shares = [float(text.rstrip("%")) for text in column(6)]
    assert shares == sorted(shares, reverse=True)
    page.locator("#per-class").get_by_role("button", name="F1", exact=True).click()
    assert [float(text.rstrip("%")) for text in column(6)] == sorted(shares)
    page.get_by_label("Filter classes").fill("GRE")
    assert column(1) == ["green"]
    assert page.locator("#per-class-count").inner_text() == "1 of 3"
    page.get_by_label("Filter classes").fill("")
    assert len(column(1)) == 3


def test_pointing_at_a_matrix_cell_shows_its_content(open_page, reports):
    page = open_page(reports["all"], 1280)
    page.locator("rect.hit").first.hover()
    assert "blue: " in page.locator("#readout").inner_text()
    assert " correct" in page.locator("#readout").inner_text()


def test_the_page_prints(open_page, reports):
    page = open_page(reports["all"], 1280)
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")
