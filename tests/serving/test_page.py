"""The page in a real browser, with a real server."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from resnetkit.inference.rows import COLUMNS
from resnetkit.serving.app import PAGE, PAGE_BASE
from resnetkit.serving.served import open_served
from resnetkit.storage import csv_line

from .conftest import FakeServed, Running, png, running, wait_for
from .test_predict import photo

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)
AXE = "axe-core@4.10.3"
TOKEN = "a-token-of-the-tests"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM.exists() and not os.environ.get("CI"),
        reason="needs /usr/bin/chromium: apt-get install chromium",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def explaining(trained: Path) -> Iterator[Running]:
    """A server for a model file, which offers heat maps and sets of classes."""
    with running(open_served(trained / "model.safetensors", engine="eager"), batch_images=2) as one:
        yield one


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the page; fail on console messages, errors, and requests to anywhere else."""
    pages = []
    problems: list[str] = []

    def open_at(
        server: Running, width: int = 1280, refusals: tuple[int, ...] = (), **options: Any
    ) -> Any:
        """Open the page. The browser logs ``refusals`` to the console; they are expected."""
        address, port = server.address
        url = f"http://{address}:{port}/"
        page = browser.new_page(
            viewport={"width": width, "height": 900}, **{"locale": "en-US", **options}
        )
        pages.append(page)

        def check_message(message: Any) -> None:
            refused = re.search(r"responded with a status of (\d+)", message.text)
            if refused is None or int(refused[1]) not in refusals:
                problems.append(message.text)

        def check_request(request: Any) -> None:
            parts = urlsplit(request.url)
            if parts.scheme not in ("blob", "data") and not request.url.startswith(url):
                problems.append(request.url)

        page.on("console", check_message)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", check_request)
        page.goto(url)
        if 401 not in refusals:
            page.wait_for_selector("#chooser:visible")
        return page

    yield open_at
    for page in pages:
        page.close()
    assert problems == []


def as_file(name: str, contents: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": contents}


def choose(page: Any, *files: tuple[str, bytes]) -> list[Any]:
    """Choose files, and return their cards once they are done."""
    page.set_input_files("#files", [as_file(*one) for one in files])
    return done(page)


def done(page: Any) -> list[Any]:
    page.wait_for_selector(".waiting", state="detached")
    cards: list[Any] = page.locator(".photo").all()
    return cards


def text_of(card: Any, selector: str) -> str:
    text: str = card.locator(selector).inner_text()
    return text


def test_two_files_are_answered_as_by_the_server(open_page, server):
    page = open_page(server)
    files = [("one.png", photo(1)), ("two.jpg", photo(2, kind="JPEG"))]
    cards = choose(page, *files)
    assert len(cards) == 2
    for card, (name, contents) in zip(cards, files, strict=True):
        row = server.request(body=contents).json
        assert text_of(card, ".name") == name
        assert text_of(card, ".class") == row["class"]
        bars = {
            text_of(bar, ".label"): float(bar.locator("data").get_attribute("value"))
            for bar in card.locator(".bars li").all()
        }
        assert bars == {one["class"]: pytest.approx(one["probability"]) for one in row["top"]}
        assert "drawn" in card.get_attribute("class")
    wait_for(lambda: "two.jpg: " in page.locator("#status").inner_text())  # what is read aloud
    assert page.locator("#progress").inner_text() == "2 of 2 done"
    # An exported file has neither gradients nor, here, calibration data.
    assert not page.locator(".why:visible, #coverage:visible").count()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_files_can_be_dropped_and_pasted(open_page, server, kind):
    page = open_page(server)
    page.evaluate(
        """async (kind) => {
            const canvas = new OffscreenCanvas(40, 30);
            canvas.getContext("2d").fillRect(0, 0, 20, 30);
            const files = new DataTransfer();
            files.items.add(new File([await canvas.convertToBlob()], "first.png"));
            files.items.add(new File([await canvas.convertToBlob()], "second.png"));
            const event = new Event(kind, { bubbles: true, cancelable: true });
            event[kind === "drop" ? "dataTransfer" : "clipboardData"] = files;
            document.body.dispatchEvent(event);
        }""",
        kind,
    )
    page.wait_for_selector(".photo")
    cards = done(page)
    assert [text_of(card, ".name") for card in cards] == ["first.png", "second.png"]
    assert all(text_of(card, ".class") in ("blue", "green", "red") for card in cards)


def test_a_dropped_folder_gives_its_photos(open_page, server, tmp_path):
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.png").write_bytes(photo(1))
    (folder / "inner" / "b.png").write_bytes(photo(2))
    (folder / ".hidden").write_bytes(b"")
    page = open_page(server)
    devices = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        files = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        devices.send("Input.dispatchDragEvent", {"type": kind, "x": 600, "y": 300, "data": files})
    page.wait_for_selector(".photo")
    names = sorted(text_of(card, ".name") for card in done(page))
    assert names == ["photos/a.png", "photos/inner/b.png"]


def test_an_unreadable_file_in_a_dropped_folder_is_named(open_page, server):
    page = open_page(server)
    page.evaluate(
        """async () => {
            const blob = await new OffscreenCanvas(8, 8).getContext("2d").canvas.convertToBlob();
            const file = (name, isReadable) => ({
                isFile: true, isDirectory: false, name, fullPath: "/folder/" + name,
                file: (give, fail) =>
                    isReadable ? give(new File([blob], name)) : fail(new DOMException("gone")),
            });
            let rest = [file("a.png", true), file("bad.png", false), file("c.png", true)];
            const readEntries = (give) => give(rest.splice(0));
            const folder = {
                isFile: false, isDirectory: true, name: "folder", fullPath: "/folder",
                createReader: () => ({ readEntries }),
            };
            const event = new Event("drop", { bubbles: true, cancelable: true });
            event.dataTransfer = {
                files: [new File([], "folder")], items: [{ webkitGetAsEntry: () => folder }],
            };
            document.body.dispatchEvent(event);
        }"""
    )
    page.wait_for_selector(".photo")
    names = sorted(text_of(card, ".name") for card in done(page))
    assert names == ["folder/a.png", "folder/c.png"]
    assert text_of(page, "#skipped") == "Cannot be read: folder/bad.png"
    page.click("#clear")
    assert not page.locator("#skipped").is_visible()


def test_a_broken_file_shows_the_reason_of_the_server(open_page, server):
    page = open_page(server, refusals=(415, 422))
    files = [
        ("notes.png", b"<b>not an image</b>"),
        ("half.png", photo(1)[:45]),
        ("ok.png", photo(1)),
    ]
    notes, half, good = choose(page, *files)
    for card, (_, contents) in zip((notes, half), files[:2], strict=True):
        assert text_of(card, ".class") == server.request(body=contents).json["error"]
        assert "failed" in card.get_attribute("class")
        assert not card.locator(".again").is_visible()  # it would fail again
    assert text_of(good, ".class") in ("blue", "green", "red")


def test_a_file_that_the_browser_cannot_show_is_answered(open_page, server):
    (card,) = choose(open_page(server), ("scan.tiff", photo(1, kind="TIFF")))
    assert text_of(card, ".class") in ("blue", "green", "red")
    assert "drawn" not in card.get_attribute("class")


def test_a_file_over_the_limit_is_not_sent(open_page):
    with running(FakeServed(), body_bytes=2**20) as server:
        (card,) = choose(open_page(server), ("big.png", bytes(2**20 + 1)))
        assert text_of(card, ".class") == "The file is too large: the server accepts at most 1 MiB."
        assert server.metric("resnetkit_requests_total", path="/predict", status="413") == 0


def test_the_heat_map_is_toggled_with_the_keyboard(open_page, explaining):
    page = open_page(explaining)
    (card,) = choose(page, ("red.png", png((220, 30, 30), (64, 64))))
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.locator("#clear").focus()
    page.keyboard.press("Tab")
    button = card.locator(".why")
    assert button.evaluate("(it) => it === document.activeElement")
    page.keyboard.press("Enter")
    page.wait_for_selector(".explanation img:visible")
    assert button.get_attribute("aria-expanded") == "true"
    image = card.locator(".explanation img")
    assert image.evaluate("(it) => it.decode().then(() => it.naturalWidth)") == 256
    assert text_of(card, ".class") in image.get_attribute("alt")
    page.keyboard.press("Enter")
    assert not image.is_visible()
    assert button.get_attribute("aria-expanded") == "false"
    page.keyboard.press("Space")
    assert image.is_visible()
    assert sum("explain=true" in url for url in requests) == 1


def download(page: Any) -> str:
    with page.expect_download() as found:
        page.get_by_role("button", name="Download CSV").click()
    assert found.value.suggested_filename == "predictions.csv"
    content: bytes = Path(found.value.path()).read_bytes()
    return content.decode()


def expected_csv(
    server: Running, files: list[tuple[str, bytes]], found: str, query: str = ""
) -> str:
    """Return the file that `resnet predict --format csv` writes for the server's answers.

    The server may have computed several images in one batch; this function never does. Batching
    changes the last bits of a number, so a number within 1e-4 of the one in `found` is replaced by
    the latter.
    """
    digest = server.request("GET", "/model").json["model"]
    lines = []
    for (name, contents), seen in zip(files, csv.DictReader(io.StringIO(found)), strict=True):
        reply = server.request(path=f"/predict{query}", body=contents)
        row = {"class": None, "probability": None, "model": digest, **reply.json}
        row = {"error": None, **row, "source": name}
        if "set" in row:
            row["set"] = json.dumps(row["set"], ensure_ascii=False)
        for number in ("probability", "strangeness"):
            if row.get(number) is not None and abs(row[number] - float(seen[number])) <= 1e-4:
                row[number] = float(seen[number])
        columns = [*COLUMNS, *(name for name in ("set", "strangeness") if name in row)]
        lines.append(csv_line(row.get(name) for name in columns))
    return csv_line(columns) + "".join(lines)


def test_the_csv_file_has_the_rows_of_predict(open_page, server):
    files = [
        ("=1+1.png", photo(1)),  # a spreadsheet would run it as a formula
        ("'@x.png", photo(2)),
        ('comma, "quote".png', photo(3)),
        ("花.png", photo(4)),
        ("notes.txt", b"text"),
    ]
    page = open_page(server, refusals=(415,))
    choose(page, *files)
    text = download(page)
    assert text == expected_csv(server, files, text)


def test_sets_of_classes_and_their_column(open_page, explaining):
    page = open_page(explaining, refusals=(400,))
    files = [("red.png", png((220, 30, 30), (64, 64))), ("gray.png", png((90, 90, 90), (64, 64)))]
    choose(page, *files)
    page.get_by_label("Set of classes").select_option("0.8")
    cards = done(page)
    for card, (name, contents) in zip(cards, files, strict=True):
        row = explaining.request(path="/predict?coverage=0.8", body=contents).json
        assert card.locator(".chip").all_inner_texts() == row["set"], name
        assert "80%" in text_of(card, ".set")
    text = download(page)
    assert text == expected_csv(explaining, files, text, "?coverage=0.8")
    assert json.loads(next(iter(csv.DictReader(io.StringIO(text))))["set"])
    # Too few calibration images for 99%: the page says so, and answers without a set.
    page.get_by_label("Set of classes").select_option("0.99")
    page.wait_for_selector("#setting-note:not(:empty)")
    assert "coverage 0.99 needs at least" in page.locator("#setting-note").inner_text()
    for card in done(page):
        assert not card.locator(".set").is_visible()
        assert text_of(card, ".class") in ("blue", "green", "red")
    assert page.locator("#coverage").input_value() == ""
    assert "99%" not in page.locator("#coverage").inner_text()


def test_strange_photos_are_unknown(open_page, explaining, trained):
    page = open_page(explaining, refusals=(400,))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    red = next((trained.parent / "data" / "red").iterdir()).read_bytes()
    files = [("red.png", red), ("noise.png", buffer.getvalue())]
    choose(page, *files)
    page.get_by_label("Unknown (false alarms)").select_option("0.2")
    labels = []
    for card, (_, contents) in zip(done(page), files, strict=True):
        row = explaining.request(path="/predict?false_alarms=0.2", body=contents).json
        assert text_of(card, ".class") == row["class"]
        labels.append(row["class"])
        assert card.locator(".bars .label").first.inner_text() == row["top"][0]["class"]
    assert labels == ["red", "unknown"]
    text = download(page)
    assert text == expected_csv(explaining, files, text, "?false_alarms=0.2")
    # Too few calibration images for 1%: the page says so.
    page.get_by_label("Unknown (false alarms)").select_option("0.01")
    page.wait_for_selector("#setting-note:not(:empty)")
    assert "false_alarms 0.01 needs at least" in page.locator("#setting-note").inner_text()
    assert page.locator("#false_alarms").input_value() == ""


def test_a_busy_server_is_asked_again(open_page):
    fake = FakeServed()
    with running(fake, queue_images=1, deadline_seconds=60) as server:
        page = open_page(server, refusals=(503,))
        fake.blocked.clear()
        page.set_input_files("#files", [as_file("a.png", png()), as_file("b.png", png())])
        busy = page.get_by_text(re.compile(r"^The server is busy. Trying again in \d+ s$"))
        busy.wait_for()
        fake.blocked.set()
        assert [text_of(card, ".class") for card in done(page)] == ["red", "red"]
        assert server.metric("resnetkit_requests_total", path="/predict", status="503") >= 1


def test_a_lost_connection_is_tried_again(open_page, server):
    page = open_page(server)
    page.evaluate(  # the browser would log an aborted request to the console
        """() => {
            const real = window.fetch;
            window.fetch = async () => {
                window.fetch = real;
                throw new TypeError("Failed to fetch");
            };
        }"""
    )
    page.set_input_files("#files", [as_file("a.png", photo(1))])
    page.wait_for_selector("text=The server is not responding. Trying again in 1 s")
    (card,) = done(page)
    assert text_of(card, ".class") in ("blue", "green", "red")


def test_a_crash_can_be_tried_again(open_page):
    fake = FakeServed()
    with running(fake) as server:
        page = open_page(server, refusals=(500, 503))
        fake.crash = RuntimeError("the engine fails")
        (card,) = choose(page, ("a.png", png()))
        assert "engine crashed" in text_of(card, ".class")
        card.get_by_role("button", name="Try again").click()
        (card,) = done(page)
        assert text_of(card, ".class") == "red"


def test_few_photos_are_sent_at_once(open_page):
    fake = FakeServed()
    with running(fake, deadline_seconds=60) as server:
        page = open_page(server)
        fake.blocked.clear()
        open_now: set[Any] = set()
        most = 0

        def begin(request: Any) -> None:
            nonlocal most
            if "/predict" in request.url:
                open_now.add(request)
                most = max(most, len(open_now))

        page.on("request", begin)
        page.on("requestfinished", lambda request: open_now.discard(request))
        page.set_input_files("#files", [as_file(f"{n}.png", png()) for n in range(12)])
        page.wait_for_timeout(500)
        assert len(open_now) == 4
        fake.blocked.set()
        assert len(done(page)) == 12
        assert most == 4


def test_photos_can_be_removed(open_page):
    fake = FakeServed()
    with running(fake, deadline_seconds=60) as server:
        page = open_page(server)
        choose(page, ("a.png", png()), ("b.png", png()), ("c.png", png()))
        page.get_by_role("button", name="Remove b.png").press("Enter")
        assert page.locator(".name").all_inner_texts() == ["a.png", "c.png"]
        assert page.evaluate("document.activeElement.ariaLabel") == "Remove c.png"
        # Requests for removed photos are canceled, and the server notices.
        fake.blocked.clear()
        page.set_input_files("#files", [as_file("d.png", png())])
        wait_for(lambda: server.server.queue.images == 1)
        page.get_by_role("button", name="Remove all").click()
        assert page.locator(".photo").count() == 0
        assert page.evaluate("document.activeElement.id") == "files"
        wait_for(lambda: '"reason": "client_gone"' in server.log.getvalue())
        fake.blocked.set()
        (card,) = choose(page, ("e.png", png()))
        assert text_of(card, ".class") == "red"


def test_the_token_is_asked_for_and_kept_only_in_memory(open_page, exported):
    with running(open_served(exported), token=TOKEN) as server:
        page = open_page(server, refusals=(401,))
        field = page.get_by_label("Token", exact=True)
        field.fill("wrong-token")
        field.press("Enter")
        page.wait_for_selector("text=The server does not accept this token")
        field.fill(TOKEN)
        field.press("Enter")
        page.wait_for_selector("#chooser:visible")
        assert not field.is_visible()
        (card,) = choose(page, ("a.png", photo(1)))
        assert text_of(card, ".class") in ("blue", "green", "red")
        stored = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
        assert TOKEN not in page.evaluate(stored)
        assert TOKEN not in page.content()
        page.reload()
        page.wait_for_selector("#token:visible")


def test_the_live_camera_takes_photos(open_page, server):
    page = open_page(server)
    page.get_by_role("button", name="Live camera").press("Enter")
    page.wait_for_selector("#shutter:focus")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=camera-1.jpg was added.")
    (card,) = done(page)
    assert text_of(card, ".name") == "camera-1.jpg"
    assert text_of(card, ".class") in ("blue", "green", "red")
    page.keyboard.press("Escape")
    assert not page.locator("#camera").is_visible()
    assert page.evaluate("document.querySelector('video').srcObject") is None
    assert page.evaluate("document.activeElement.id") == "live"


def test_a_camera_that_is_closed_and_opened_again_while_it_starts_is_stopped(open_page, server):
    page = open_page(server)
    stopped = page.evaluate(
        """async () => {
            const pending = [];
            const media = navigator.mediaDevices;
            const original = media.getUserMedia.bind(media);
            media.getUserMedia = (wish) =>
                new Promise((resolve) => pending.push(async () => {
                    const stream = await original(wish);
                    resolve(stream);
                    return stream.getTracks();
                }));
            const live = document.getElementById("live");
            const dialog = document.getElementById("camera");
            live.click();
            dialog.close();
            live.click();
            const tracks = [];
            for (const start of pending) tracks.push(...(await start()));
            await new Promise((resolve) => setTimeout(resolve, 300));
            dialog.close();
            await new Promise((resolve) => setTimeout(resolve, 300));
            return tracks.map((track) => track.readyState);
        }"""
    )
    assert stopped == ["ended", "ended"]


def test_without_a_secure_context_there_is_no_live_camera(open_page, browser, server):
    page = open_page(server)
    assert page.locator("#live").is_visible()
    assert not page.locator("#phone").is_visible()
    page.add_init_script("Object.defineProperty(window, 'isSecureContext', { value: false })")
    page.reload()
    page.wait_for_selector("#chooser:visible")
    page.wait_for_timeout(200)
    assert not page.locator("#live").is_visible()


def test_a_chinese_phone(open_page, explaining):
    page = open_page(
        explaining, width=390, refusals=(415,), locale="zh-CN", has_touch=True, is_mobile=True
    )
    cards = choose(
        page,
        ("一个非常长的文件名" * 8 + ".png", png((220, 30, 30), (640, 80))),
        ("notes.txt", b"text"),
    )
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert page.locator("#shot").get_attribute("capture") == "environment"
    assert page.get_by_text("拍照").is_visible()
    page.get_by_label("类别集合").select_option("0.8")
    cards = done(page)
    cards[0].get_by_role("button", name="热图").click()
    page.wait_for_selector(".explanation img:visible")
    page.get_by_text("3 个类别").click()
    page.wait_for_selector("#classes li")
    assert text_of(cards[1], ".class").startswith("这个文件不是图片。")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_all_files_of_the_page_are_served(server):
    base = PAGE.parents[1] / "export" / PAGE_BASE[1]
    for path in (*PAGE.iterdir(), *base.iterdir()):
        reply = server.request("GET", f"/page/{path.name}")
        assert reply.status == 200
        if path.suffix == ".js":  # browsers run a module only if it has this type
            assert "javascript" in reply.headers["content-type"]


def test_both_languages_have_the_same_words():
    text = (PAGE / "texts.js").read_text(encoding="utf-8")
    english, chinese = (
        re.findall(r"^  (\w+):", part, re.M) for part in text.split("const CHINESE")
    )
    assert english == chinese
    used = set()
    for path in PAGE.iterdir():
        used |= set(re.findall(r'\btext\.(\w+)|data-text="(\w+)"', path.read_text("utf-8")))
    assert {first or second for first, second in used} == set(english)


@pytest.fixture(scope="module")
def axe(request: pytest.FixtureRequest) -> str:
    """The source of axe-core; pytest's cache keeps it, so it is fetched only once."""
    folder = request.config.cache.mkdir("axe-core")
    script = folder / f"{AXE}.js"
    if not script.exists():
        if shutil.which("npm") is None and not os.environ.get("CI"):
            pytest.skip("ACCESSIBILITY NOT CHECKED: needs npm, to fetch axe-core")
        command = ["npm", "pack", "--silent", AXE]
        packed = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if packed.returncode and not os.environ.get("CI"):
            pytest.skip(
                f"ACCESSIBILITY NOT CHECKED: npm cannot fetch {AXE}: {packed.stderr[-200:]}"
            )
        assert packed.returncode == 0, packed.stderr
        archive = folder / packed.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            member = tar.extractfile("package/axe.min.js")
            assert member is not None
            script.write_bytes(member.read())
        archive.unlink()
    return script.read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(open_page, explaining, axe, scheme):
    page = open_page(explaining, refusals=(415,), color_scheme=scheme, reduced_motion="reduce")
    choose(page, ("red.png", png((220, 30, 30), (64, 64))), ("notes.txt", b"text"))
    page.get_by_label("Set of classes").select_option("0.8")
    done(page)
    page.locator(".why:visible").first.click()
    page.wait_for_selector(".explanation img:visible")
    page.get_by_text("3 classes").click()
    page.evaluate("document.getElementById('token-form').hidden = false")
    check = """async () => {
        const { violations, passes } = await axe.run();
        const findings = violations
            .filter(({ impact }) => impact === "serious" || impact === "critical")
            .map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html)]);
        return [passes.length, findings];
    }"""
    page.evaluate(axe)
    passes, findings = page.evaluate(check)
    assert passes > 10
    assert findings == []
    page.locator("#live").click()
    page.wait_for_selector("#shutter:enabled")
    assert page.evaluate(check)[1] == []
