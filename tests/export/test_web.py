"""The web page in a real browser: it answers, verifies itself, and sends nothing elsewhere."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image, ImageDraw

from resnetkit.data.decode import decode
from resnetkit.errors import RecipeError
from resnetkit.export import web

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CLASSES = ("blue", "green", "red")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM.exists() and not os.environ.get("CI"),
        reason="needs /usr/bin/chromium: apt-get install chromium",
    ),
    pytest.mark.skipif(
        shutil.which("npm") is None and not os.environ.get("CI"),
        reason="needs npm, to fetch onnxruntime-web: apt-get install npm",
    ),
]


@pytest.fixture(scope="module")
def runtime(request):
    """The files of the runtime, kept in pytest's cache so that they are fetched only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(request.config.cache.mkdir("onnxruntime-web")))
        patch.delenv("RESNETKIT_OFFLINE", raising=False)
        try:
            return next(iter(web.runtime_files().values())).parent
        except RecipeError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"onnxruntime-web is not available: {error}")


@pytest.fixture(scope="module")
def site(tiny_model, runtime, tmp_path_factory):
    """A folder with three pages: as exported, with other weights, and with other decoded pixels."""
    folder = tmp_path_factory.mktemp("site")
    web.export_web(tiny_model, folder / "page", runtime=runtime)
    for name, change in (("weights", change_weights), ("decoder", change_decoded)):
        shutil.copytree(folder / "page", folder / name)
        model = onnx.load(folder / name / web.MODEL)
        change(model)
        onnx.save(model, folder / name / web.MODEL)
    return folder


def change_weights(model):
    tensor = next(one for one in model.graph.initializer if one.name.endswith("head.weight"))
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.2), tensor.name))


def change_decoded(model):
    """Record other pixels for two images, and another range of 16-bit gray."""
    for entry in model.metadata_props:
        content = json.loads(entry.value) if entry.key.startswith("resnetkit") else {}
        for image in content.get("images", []):
            if image["name"] in ("cmyk.jpg", "gray.png"):
                size = len(base64.b64decode(image["decoded"]["sample"]))
                image["decoded"]["sample"] = base64.b64encode(bytes(size)).decode()
        if "preprocessing" in content:
            content["preprocessing"]["value_range"] = [0, 1000]
        if content:
            entry.value = json.dumps(content)


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def open_page(browser, address):
    """Open a page; fail on console messages, errors, and requests to anywhere else."""
    pages = []
    problems = []

    def open_at(path="page/", width=1280, locale="en-US"):
        page = browser.new_page(viewport={"width": width, "height": 900}, locale=locale)
        pages.append(page)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(address) or problems.append(request.url),
        )
        page.goto(address + path)
        page.wait_for_selector("#chooser:visible")
        return page

    yield open_at
    for page in pages:
        page.close()
    assert problems == []


@pytest.fixture
def photos(tmp_path):
    """Drawn images that are large, rotated, transparent, gray and indexed."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (150, 90, 3), dtype=np.uint8))
    ImageDraw.Draw(image).ellipse((20, 30, 70, 110), fill=(200, 40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    large = image.resize((3000, 2000), Image.Resampling.BICUBIC)
    transparent = image.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    paths = [tmp_path / name for name in ("large.jpg", "turned.jpg", "clear.png", "gray.png")]
    large.save(paths[0], quality=90)
    image.save(paths[1], quality=90, exif=exif)
    transparent.save(paths[2])
    image.convert("L").save(paths[3])
    return paths


def answers(page, paths):
    """Give the page photos, and return (name, class, {class: probability}) of each card."""
    page.set_input_files("#files", [str(path) for path in paths])
    page.wait_for_selector(".waiting", state="detached")
    cards = page.locator(".photo").all()
    return [
        (
            card.locator(".name").inner_text(),
            card.locator(".class").inner_text(),
            {
                bar.locator(".label").inner_text(): float(
                    bar.locator("data").get_attribute("value")
                )
                for bar in card.locator(".bars li").all()
            },
        )
        for card in cards
    ]


def verification(page):
    """Return the verdict, and the cells of each row of the table of stages."""
    page.wait_for_selector("#stages:visible")
    rows = page.locator("#stages tbody tr").all()
    cells = {row.get_attribute("data-stage"): row.locator("td").all_inner_texts() for row in rows}
    return page.locator("#verdict").inner_text(), cells


def test_photos_are_answered_as_by_onnxruntime(open_page, photos, site):
    session = onnxruntime.InferenceSession(site / "page" / web.MODEL)
    found = answers(open_page(), photos)
    assert [name for name, *_ in found] == [path.name for path in photos]
    for path, (_, label, bars) in zip(photos, found, strict=True):
        shares = session.run(["probabilities"], {"image": decode(path)[None]})[0][0]
        assert label == CLASSES[shares.argmax()]
        assert bars.keys() == set(CLASSES)
        expected = dict(zip(CLASSES, shares.tolist(), strict=True))
        assert bars == pytest.approx(expected, abs=1e-3), path.name


def test_the_golden_images_agree_in_the_browser(open_page):
    verdict, rows = verification(open_page("page/?verify=1"))
    assert verdict.startswith("Agrees with PyTorch at every stage")
    stages = ["decoded", "cropped", "normalized", "logits", "probabilities", "class"]
    assert list(rows) == stages
    for _, images, _, result in rows.values():
        assert int(images) >= 15  # all but CMYK and 16 bits
        assert result == "agrees"


def test_other_weights_are_noticed(open_page):
    page = open_page("weights/")
    page.get_by_role("button", name="Verify").click()
    verdict, rows = verification(page)
    assert verdict == "Disagrees: logits is the first stage that differs."
    assert rows["normalized"][3] == "agrees"
    assert rows["logits"][3].startswith("differs: exif-1.jpg")


def test_what_the_browser_decodes_in_its_own_way_is_no_pass(open_page):
    """CMYK is not compared; a gray PNG, which all browsers decode the same way, differs."""
    verdict, rows = verification(open_page("decoder/?verify=1"))
    assert "Disagrees: decoded is the first stage" in verdict
    assert "Not decoded identically here: cmyk.jpg" in verdict
    assert rows["decoded"][1] == rows["class"][1] == "16"
    assert rows["decoded"][3] == "differs: gray.png"
    assert rows["cropped"][3] == "agrees"


def test_a_file_that_is_no_image_says_so_and_the_others_are_answered(open_page, photos, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("<b>not an image</b>")
    found = answers(open_page(), [notes, photos[3]])
    assert found[0][1] == "This browser cannot read the file as an image."
    assert found[1][1] in CLASSES


def test_16_bits_are_refused_if_the_browser_does_not_know_their_range(open_page, tmp_path):
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((20, 30), 700, np.uint16)).save(deep)
    (decoded,) = answers(open_page("decoder/"), [deep])
    assert "For images with 16 bits per color, use the command" in decoded[1]
    (known,) = answers(open_page("page/"), [deep])
    assert known[1] in CLASSES


def test_photos_can_be_pasted_and_dropped(open_page):
    page = open_page()
    for kind, where in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """async ([kind, where]) => {
                const canvas = new OffscreenCanvas(40, 30);
                canvas.getContext("2d").fillRect(0, 0, 20, 30);
                const files = new DataTransfer();
                files.items.add(new File([await canvas.convertToBlob()], `${kind}.png`));
                const event = new Event(kind, { bubbles: true, cancelable: true });
                event[where] = files;
                document.body.dispatchEvent(event);
            }""",
            [kind, where],
        )
    page.wait_for_selector(".waiting", state="detached")
    assert page.locator(".name").all_inner_texts() == ["drop.png", "paste.png"]
    assert all(text in CLASSES for text in page.locator(".class").all_inner_texts())
    page.get_by_role("button", name="Remove all").click()
    assert page.locator(".photo").count() == 0


def test_a_chinese_browser_on_a_phone_with_a_keyboard(open_page, photos):
    page = open_page(width=390, locale="zh-CN")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    answers(page, photos)
    page.get_by_role("button", name="校验").press("Enter")
    verdict, _ = verification(page)
    assert verdict.startswith("每个阶段都与 PyTorch 一致")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_cannot_send_anything_elsewhere(browser, address):
    page = browser.new_page()
    page.goto(address + "page/")
    blocked = page.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) =>
                resolve(event.effectiveDirective));
            fetch("https://example.org/", { method: "POST", body: "photo" }).catch(() => {});
        })"""
    )
    page.close()
    assert blocked == "connect-src"
