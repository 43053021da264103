"""Datasets and photos in object stores: a real S3 server behind a proxy that injects faults."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pytest

from resnetkit.cli import sources
from resnetkit.cli.sources import count_sources, expand_sources
from resnetkit.data import cache, disk_cache, files, folder, object_cache, object_store, shards
from resnetkit.data import remote as remote_images
from resnetkit.data.check import check_dataset
from resnetkit.data.dataset import Images
from resnetkit.data.loader import Loader
from resnetkit.data.object_cache import ObjectCache
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.remote import read_ahead
from resnetkit.data.shard_writer import write_shards
from resnetkit.errors import DataError, ImageError, MissingPackageError, OutputError
from resnetkit.scale.listing import list_items
from resnetkit.storage import make_output

pytest.importorskip("obstore", reason="the extra s3 is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")

KEY = "AKIAQXTESTKEYID00042"
SECRET = "tEsTs3cr3t/neverShownAnywhere+0042"
UNSIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, Signature=0"


class Proxy(ThreadingHTTPServer):
    """Forwards requests to the server, and corrupts some of the answers.

    Args:
        target: host and port of the server.

    Attributes:
        rate: share of requests with a random fault.
        spoil: takes the method and path of a request, and returns its fault; None for a random one.
        log: method, path and range of each request.
        faults: number of faults of each kind.
    """

    daemon_threads = True

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = target
        self.reset()

    def reset(self) -> None:
        self.rng = random.Random(42)
        self.rate = 0.0
        self.spoil = lambda method, path: None
        self.log: list[tuple[str, str, str]] = []
        self.faults: dict[str, int] = {}
        self.lock = threading.Lock()

    def fault(self, method: str, path: str, span: str) -> str | None:
        with self.lock:
            self.log.append((method, path, span))
            fault = self.spoil(method, path)
            if fault is None and self.rng.random() < self.rate:
                fault = self.rng.choice(["503", "cut", "delay"])
            if fault is not None:
                self.faults[fault] = self.faults.get(fault, 0) + 1
            return fault

    def handle_error(self, request, address):
        pass  # the client disconnected


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *arguments):
        pass

    def answer(self):
        # Google's API escapes the slashes in a key, which the server does not understand. Without
        # credentials, the server returns nothing.
        path, _, query = self.path.partition("?")
        path = quote(unquote(path)) + (f"?{query}" if query else "")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        fault = self.server.fault(self.command, unquote(path), self.headers.get("Range", ""))
        if fault == "delay":
            time.sleep(0.2)
        elif fault is not None and fault.isdigit():
            # Repeat what the client sent, as some stores do.
            code = {"503": "SlowDown", "403": "InvalidAccessKeyId"}.get(fault, "Odd")
            repeated = self.headers.get("Authorization", "")
            text = f"<Error><Code>{code}</Code><AWSAccessKeyId>{repeated}</AWSAccessKeyId></Error>"
            self.send_response(int(fault))
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())
            return
        connection = http.client.HTTPConnection(*self.server.target, timeout=20)
        headers = dict(self.headers)
        if "Authorization" not in self.headers:
            headers["Authorization"] = UNSIGNED
        connection.request(self.command, path, body, headers)
        response = connection.getresponse()
        contents = response.read()
        connection.close()
        if fault == "flip" and contents:
            contents = contents[:-1] + bytes([contents[-1] ^ 1])
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        is_head = self.command == "HEAD"
        size = response.headers["Content-Length"] if is_head else str(len(contents))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        if is_head:
            return
        if fault == "cut" and contents:
            self.wfile.write(contents[: len(contents) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(contents)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer


@pytest.fixture(scope="module")
def _servers():
    """A server with its proxy."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port())
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    thread.join()
    server.stop()


def forget():
    """Forget what this process knows about stores."""
    for cached in (object_store._open, object_cache._open, sources._keys):
        cached.cache_clear()
    shards._opened.clear()


@pytest.fixture
def store(_servers, tmp_path, monkeypatch):
    """The proxy of a server with the empty bucket ``photos``, and the variables to use it."""
    _servers.reset()
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{_servers.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "cache"))
    forget()
    client(_servers).create_bucket(Bucket="photos")
    yield _servers
    _servers.spoil = lambda method, path: None
    _servers.rate = 0
    connection = http.client.HTTPConnection(*_servers.target, timeout=20)
    connection.request("POST", "/moto-api/reset")
    connection.getresponse().read()
    connection.close()
    forget()


def client(proxy):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host, port = proxy.target
        return boto3.client("s3", region_name="us-east-1", endpoint_url=f"http://{host}:{port}")


def upload(proxy, root, prefix):
    s3 = client(proxy)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(root).as_posix()}"
            s3.put_object(Bucket="photos", Key=key, Body=path.read_bytes())


@pytest.fixture
def packed(store, split_folder, tmp_path):
    """A local folder of shards, also at ``s3://photos/packed``."""
    write_shards(split_folder, tmp_path / "packed", size=1)
    upload(store, tmp_path / "packed", "packed")
    return tmp_path / "packed"


URL = "s3://photos/packed"


def ranges(proxy):
    """Return the ranges of tar files that were requested, in order."""
    return [span for method, path, span in proxy.log if path.endswith(".tar") and method == "GET"]


def test_a_dataset_has_the_same_images(store, packed):
    original = folder.read_dataset(packed)
    found = folder.read_dataset(URL)
    assert (found.name, found.classes, found.remarks) == (original.name, original.classes, ())
    for name, split in original.splits.items():
        assert list(found.splits[name].paths) == list(split.paths)
        assert found.splits[name].labels.tolist() == split.labels.tolist()
        for i in range(len(split)):
            assert files.read_file(found.splits[name].path(i)) == files.read_file(split.path(i))


def test_an_image_is_read_by_one_range_and_kept(store, packed):
    split = folder.read_dataset(URL).splits["train"]
    contents = files.read_file(split.path(5))
    (span,) = ranges(store)
    opened = shards.open_shards(Path(URL))
    start = int(opened.offsets[5]) - 512
    assert span == f"bytes={start}-{start + 511 + int(opened.sizes[5])}"
    with files.open_file(split.path(5)) as file:
        assert file.read(4) == contents[:4]
    assert len(ranges(store)) == 1  # the second read was from disk


def test_every_image_arrives_once_whatever_the_store_does(store, packed):
    """One in seven answers is an error, cut short, or late; readers notice nothing."""
    store.rate = 0.15
    original = folder.read_dataset(packed)
    dataset = folder.read_dataset(URL)
    found = {}
    for name, split in dataset.splits.items():
        for index in remote_images.in_order(split):
            assert (name, index) not in found
            found[name, index] = files.read_file(split.path(index))
    assert len(found) == 54
    for (name, index), contents in found.items():
        assert contents == files.read_file(original.splits[name].path(index))
    assert set(store.faults) == {"503", "cut", "delay"}, store.faults


def train(data, out, small, **settings):
    from resnetkit import train

    run = train(data, out=out, **small, **settings)
    return {name: (run.folder / name).read_bytes() for name in ("model.safetensors", "history.csv")}


def test_training_gives_the_same_model(store, packed, split_folder, tmp_path, small):
    expected = train(split_folder, tmp_path / "local", small)
    store.rate = 0.15
    assert train(URL, tmp_path / "remote", small) == expected
    assert sum(store.faults.values()) > 3
    environment = json.loads((tmp_path / "remote" / "environment.json").read_text())
    assert environment["data"] == URL
    report = (tmp_path / "remote" / "report.html").read_text()
    assert URL in report
    assert "s3:/photos" not in report


@pytest.mark.slow
def test_training_that_decodes_every_time(
    store, packed, split_folder, tmp_path, small, monkeypatch
):
    """Pixels fit neither in memory nor on disk, so each epoch reads the images in its own order."""
    expected = train(split_folder, tmp_path / "local", small)
    monkeypatch.setattr(cache, "RAM_SHARE", 0)
    monkeypatch.setattr(disk_cache, "SHARE", 0)
    monkeypatch.setenv("RESNETKIT_OBJECT_CACHE_GB", "0")
    store.rate = 0.05
    assert train(URL, tmp_path / "remote", small) == expected
    assert len(ranges(store)) > 3 * 54
    assert not (tmp_path / "cache" / "objects").exists()


def test_a_run_is_resumed_and_its_split_is_read(store, flat_folder, tmp_path, small, monkeypatch):
    from resnetkit import train
    from resnetkit.evaluation.evaluate import evaluate

    monkeypatch.chdir(tmp_path)
    write_shards(flat_folder, URL)
    run = train(URL, **small)
    assert run.folder == Path("runs/squares-cifar_resnet20")
    again = train(URL, resume=True, **small)
    assert (again.folder, again.history) == (run.folder, run.history)
    forget()
    result = evaluate(again.model, run.folder / "split.csv", "val")
    assert result.metrics["accuracy"] == again.metrics["accuracy"]
    assert len(result.samples) == 6


def test_check_reads_whole_shards(store, packed):
    assert check_dataset(URL).issues == check_dataset(packed).issues
    tar = bytearray((packed / "train-000000.tar").read_bytes())
    first = int(shards.open_shards(packed).offsets[1]) - 1024  # the label of the first image
    assert tar[first : first + 1] == b"0"
    tar[first : first + 1] = b"2"
    client(store).put_object(Bucket="photos", Key="packed/train-000000.tar", Body=bytes(tar))
    result = check_dataset(URL)
    (issue,) = [issue for issue in result.issues if issue.level == "error"]
    assert (issue.kind, issue.groups) == ("shards", [["train-000000.tar"]])
    assert result.to_dict()["data"] == URL


def test_predict_lists_a_prefix_as_a_folder(store, tmp_path):
    root = tmp_path / "photos"
    names = ["b.jpg", "a.png", "q", "q.jpg_large", "@eaDir/a.png/S.jpg", "b/c.jpg", "b/.hidden.jpg"]
    names += ["runs/x/environment.json", "runs/x/recipe.yaml", "runs/x/curves.png", "b/a/z.jpg"]
    names += ["drawn/a.jpg", "a b/ü #1%20+.jpg", "b.dir/x.png", "empty.txt"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    make_output(root / "drawn")
    upload(store, root, "some/prefix")
    upload(store, root, "some/prefix-two")  # starts with the same letters as the prefix
    url = "s3://photos/some/prefix"
    notes = {"local": [], "remote": []}
    expected = list(expand_sources([str(root)], notes["local"].append))
    found = list(expand_sources([url + "/"], notes["remote"].append))
    assert len(found) == 6
    assert found == [source.replace(str(root), url) for source in expected]
    assert count_sources([url]) == len(found)
    without_examples = [
        sorted(note.split(": ")[1].split(",")[0] for note in each) for each in notes.values()
    ]
    assert without_examples[0] == without_examples[1]
    assert len(without_examples[0]) == 4
    for source in found:
        assert files.read_file(Path(source)).decode() == source.removeprefix(url + "/")


def listed(*arguments):
    return {item.source: item for item in list_items(arguments, expand_sources)}


def test_bulk_prediction_knows_the_versions_of_objects(store, packed, flat_folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="bulk prediction needs the extra ray")
    upload(store, flat_folder, "flat")
    found = listed("s3://photos/flat")
    assert list(found) == [s.replace(str(flat_folder), "s3://photos/flat") for s in
                           expand_sources([str(flat_folder)])]  # fmt: skip
    for url, item in found.items():
        contents = files.read_file(Path(url))
        assert item.version == hashlib.md5(contents).hexdigest()  # how S3 computes entity tags
        assert (item.size, item.image) == (len(contents), url)
    requests = [line for line in store.log if line[0] == "HEAD"]
    assert requests == []

    url = "s3://photos/flat/red/001.png"
    (tmp_path / "list.txt").write_text(f"{url}\ns3://photos/flat/gone.png\n")
    parquet.write_table(pa_table([url]), tmp_path / "list.parquet")
    assert listed(url) == listed(str(tmp_path / "list.parquet")) == {url: found[url]}
    both = listed("s3://photos/packed", f"@{tmp_path}/list.txt")
    assert both[url] == found[url]
    assert both["s3://photos/flat/gone.png"].version == ""
    in_shards = [item.version for source, item in both.items() if source.startswith(URL)]
    assert len(in_shards) == len(shards.open_shards(packed).paths)
    (version,) = set(in_shards)
    assert version.startswith("shards-")
    member = shards.open_shards(packed).paths[0]
    assert listed(f"{URL}/{member}")[f"{URL}/{member}"].version == version

    client(store).put_object(Bucket="photos", Key="flat/red/001.png", Body=b"another")
    assert listed(url)[url].version == hashlib.md5(b"another").hexdigest()


def pa_table(paths):
    import pyarrow as pa

    return pa.table({"path": paths})


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_bulk_prediction_on_a_prefix(store, flat_folder, tmp_path, tiny_model):
    """The rows equal the folder's; no image is predicted twice; no credential leaks anywhere."""
    from pyarrow import parquet

    upload(store, flat_folder, "flat")
    arguments = ("--engine", "eager", "--precision", "fp32")
    local = resnet("predict", tiny_model, flat_folder, *arguments, cwd=tmp_path)
    expected = [json.loads(line) for line in local.stdout.splitlines()]
    store.rate = 0.05
    on_ray = ("predict", tiny_model, "s3://photos/flat", *arguments, "--on", "ray", "--out", "rows")
    first = resnet(*on_ray, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    rows = {row["source"]: row for row in parquet.read_table(tmp_path / "rows").to_pylist()}
    assert len(rows) == len(expected) == 48
    for wanted in expected:
        row = rows[wanted["source"].replace(str(flat_folder), "s3://photos/flat")]
        assert row["class"] == wanted["class"]
        assert row["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
    changed = "s3://photos/flat/red/001.png"
    client(store).put_object(Bucket="photos", Key="flat/red/001.png", Body=b"another")
    again = resnet(*on_ray, cwd=tmp_path)
    assert again.returncode == 3
    table = parquet.read_table(tmp_path / "rows").to_pylist()
    assert len(table) == 49  # a second row only for the changed object
    assert sorted(row["error"] is None for row in table if row["source"] == changed) == [
        False,
        True,
    ]
    assert_no_credentials(tmp_path, first.stdout, first.stderr, again.stdout, again.stderr)


def resnet(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "resnetkit", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )


def assert_no_credentials(root, *texts):
    """Search every file under ``root``, and ``texts``."""
    for path in root.rglob("*"):
        if path.is_file():
            contents = path.read_bytes()
            assert KEY.encode() not in contents, path
            assert SECRET.encode() not in contents, path
    for text in texts:
        assert KEY not in text
        assert SECRET not in text


@pytest.mark.slow
def test_rows_of_a_prefix_and_no_credentials_anywhere(store, flat_folder, tmp_path, tiny_model):
    (tmp_path / "out").mkdir()
    upload(store, flat_folder, "flat")
    store.rate = 0.05
    local = resnet("predict", tiny_model, flat_folder, cwd=tmp_path / "out")
    remote = resnet("predict", tiny_model, "s3://photos/flat", cwd=tmp_path / "out")
    assert (local.returncode, remote.returncode) == (0, 0), remote.stderr
    assert remote.stdout == local.stdout.replace(str(flat_folder), "s3://photos/flat")
    assert remote.stdout.count("\n") == 48
    store.spoil = lambda method, path: "403"
    refused = resnet("predict", tiny_model, "s3://photos/flat/red/001.png", cwd=tmp_path / "out")
    assert refused.returncode == 3
    assert "answered 403 (InvalidAccessKeyId). Expected credentials" in refused.stdout
    trained = resnet("train", "s3://photos/flat", cwd=tmp_path / "out")
    assert trained.returncode == 1
    texts = [text for one in (remote, refused, trained) for text in (one.stdout, one.stderr)]
    assert_no_credentials(tmp_path, *texts)


@pytest.mark.slow
def test_a_run_holds_no_credentials(store, packed, tmp_path):
    store.rate = 0.1
    arguments = ["--model", "cifar_resnet20", "--set", "model_options={width: 4}"]
    arguments += ["--image-size", "32", "--epochs", "1", "--batch-size", "8", "--weights", "none"]
    trained = resnet("train", URL, *arguments, "--out", tmp_path / "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert f"resnet evaluate {tmp_path}/run/model.safetensors {URL} --split val" in trained.stdout
    assert "cached in" in trained.stderr
    assert_no_credentials(tmp_path, trained.stdout, trained.stderr)


def shown_by(error):
    """Return all that a traceback with causes, a log or a debugger shows about an error."""
    seen = []
    while error is not None:
        seen += [*traceback.format_exception(error), repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "".join(seen)


@pytest.mark.parametrize("status", ["301", "400", "401", "403", "404", "416", "503"])
def test_errors_name_object_and_status_and_no_credentials(store, packed, status, monkeypatch):
    monkeypatch.setattr(object_store, "RETRIES", 1)
    split = folder.read_dataset(URL).splits["train"]
    store.spoil = lambda method, path: status
    with pytest.raises(ImageError) as caught:
        files.read_file(split.path(0))
    text = str(caught.value)
    assert text.startswith(f"{URL}/train/blue/000.png (train-000000.tar/00000000.png): {URL}/train")
    assert status in text or "no such object" in text or "no bucket" in text
    assert any(word in text for word in ("Check", "Set AWS_REGION"))
    assert caught.value.passing
    assert_no_credentials(packed, shown_by(caught.value))


def test_retries_are_bounded(store, packed, monkeypatch):
    monkeypatch.setattr(object_store, "RETRIES", 3)
    split = folder.read_dataset(URL).splits["train"]
    store.log.clear()
    store.spoil = lambda method, path: "503"
    with pytest.raises(ImageError, match=r"answered 503( \(SlowDown\))?, even after .* s of"):
        files.read_file(split.path(0))
    assert len(store.log) == 4
    store.log.clear()
    store.spoil = lambda method, path: "cut"
    with pytest.raises(ImageError, match=r"Check the network, AWS_ENDPOINT_URL"):
        files.read_file(split.path(0))
    assert object_store.ROUNDS <= len(store.log) <= object_store.ROUNDS * 4


def test_a_store_that_is_gone(store, packed, monkeypatch):
    monkeypatch.setattr(object_store, "RETRIES", 1)
    split = folder.read_dataset(URL).splits["train"]
    object_store._open.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@127.0.0.1:9")
    with pytest.raises(ImageError, match=r"the store at 127.0.0.1:9 did not answer") as caught:
        files.read_file(split.path(0))
    assert "hunter2" not in shown_by(caught.value)


def test_wrong_bytes_are_read_again_or_refused(store, packed):
    split = folder.read_dataset(URL).splits["train"]
    faults = iter(["flip", "flip"])
    store.spoil = lambda method, path: next(faults, None)
    assert files.read_file(split.path(0)) == files.read_file(packed / "train/blue/000.png")
    store.spoil = lambda method, path: "flip"
    with pytest.raises(ImageError, match=r"001.png \(train-.*/00000001.png\): .*its SHA-256 is"):
        files.read_file(split.path(1))
    forget()
    with pytest.raises(DataError, match=r"s3://photos/packed/.* is not a valid"):
        folder.read_dataset(URL)


def test_wrong_bytes_after_all_patience(store, packed, monkeypatch):
    split = folder.read_dataset(URL).splits["train"]
    monkeypatch.setattr(object_store, "PATIENCE", 0.0)
    store.spoil = lambda method, path: "flip"
    with pytest.raises(ImageError, match=r"001.png \(train-.*/00000001.png\): .*its SHA-256 is"):
        files.read_file(split.path(1))


def test_a_shard_of_another_length_or_a_missing_one(store, packed):
    s3 = client(store)
    tar = (packed / "val-000000.tar").read_bytes()
    for wrong in (tar[:-512], tar + bytes(512)):
        s3.put_object(Bucket="photos", Key="packed/val-000000.tar", Body=wrong)
        expected = rf"{URL}/val-000000.tar has {len(wrong):,} bytes; expected {len(tar):,}"
        with pytest.raises(DataError, match=expected):
            folder.read_dataset(URL)
    s3.delete_object(Bucket="photos", Key="packed/val-000000.tar")
    with pytest.raises(DataError, match=r"val-000000.tar: there is no such object"):
        folder.read_dataset(URL)
    s3.delete_object(Bucket="photos", Key="packed/index.safetensors")
    forget()
    for file in (object_cache.open_cache()._folder).rglob("*"):
        file.is_file() and file.unlink()
    with pytest.raises(DataError, match=r"index.safetensors is not a valid index \(there is no"):
        folder.read_dataset(URL)


def test_shards_that_are_replaced_are_read_anew(store, packed, save, tmp_path):
    folder.read_dataset(URL)
    other = write_shards(save(tmp_path / "other", 3), tmp_path / "new")
    upload(store, tmp_path / "new", "packed")
    assert folder.read_dataset(URL).name == other.manifest.name == "other"


def test_nothing_there(store, flat_folder, tiny_model):
    with pytest.raises(DataError, match=r"s3://photos/none has no shards.json \(there is nothing"):
        folder.read_dataset("s3://photos/none")
    upload(store, flat_folder, "flat")
    with pytest.raises(DataError, match=r"\(it has blue/000.png.*run: resnet shard FOLDER s3://p"):
        folder.read_dataset("s3://photos/flat")
    with pytest.raises(DataError, match=r"there is no bucket s3://nowhere at 127.0.0.1"):
        folder.read_dataset("s3://nowhere/packed")
    with pytest.raises(DataError, match=r"there is no bucket s3://nowhere at 127.0.0.1"):
        list(expand_sources(["s3://nowhere/x"]))
    (source,) = expand_sources(["s3://photos/none"])
    assert source == ("s3://photos/none", "s3://photos/none: no images in this prefix")
    with pytest.raises(ImageError, match=r"s3://photos/flat/x.png: there is no such object"):
        files.read_file(Path("s3://photos/flat/x.png"))
    with pytest.raises(DataError, match=r"names no bucket. Expected s3://BUCKET/PREFIX"):
        folder.read_dataset("s3://")


def test_an_image_in_shards_by_its_url(store, packed):
    image = "train/red/003.png"
    assert files.read_file(Path(f"{URL}/{image}")) == files.read_file(packed / image)
    with pytest.raises(ImageError, match=r"train/red/x.png: there is no such object"):
        files.read_file(Path(f"{URL}/train/red/x.png"))


def test_an_image_in_shards_at_the_root_of_a_bucket(store, split_folder):
    client(store).create_bucket(Bucket="whole")
    write_shards(split_folder, "s3://whole")
    for image in ("train/red/003.png", "validation/red/103.png"):
        forget()
        assert files.read_file(Path(f"s3://whole/{image}")) == (split_folder / image).read_bytes()


def test_credentials_are_asked_for(store, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"found only AWS_ACCESS_KEY_ID. Expected AWS_ACC") as one:
        folder.read_dataset(URL)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(DataError, match=r"neither AWS_ACCESS_KEY_ID nor an IAM role.*aws config"):
        folder.read_dataset(URL)
    assert_no_credentials(Path("/nonexistent"), shown_by(one.value))


def test_a_url_with_credentials_is_refused_and_not_repeated(store, tmp_path):
    (tmp_path / "list.txt").write_text(f"s3://{KEY}:x@photos/a.jpg\n")
    given = [f"s3://{KEY}:x@photos/a", f"s3://{KEY}@photos/a.jpg", f"@{tmp_path}/list.txt"]
    for source in given:
        with pytest.raises(DataError, match=r"contains credentials.*AWS_ACCESS_KEY_ID=") as caught:
            list(expand_sources([source]))
        assert KEY not in shown_by(caught.value)
    with pytest.raises(DataError, match=r"The s3:// URL contains credentials") as caught:
        folder.read_dataset(given[0])
    assert KEY not in shown_by(caught.value)
    assert not store.log


def test_without_the_extra(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingPackageError, match=r'pip install "resnetkit\[s3\]"'):
        folder.read_dataset(URL)


def test_the_library_is_imported_only_for_a_url(flat_folder):
    code = (
        "import sys; from resnetkit.data.folder import read_dataset; "
        f"read_dataset({str(flat_folder)!r}); assert 'obstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
    users = [
        path.name
        for path in Path(files.__file__).parents[1].rglob("*.py")
        if "import obstore" in path.read_text() or "from obstore" in path.read_text()
    ]
    assert users == ["object_store.py"]


def test_shards_are_written_to_a_store(store, split_folder, packed, tmp_path):
    store.log.clear()
    write_shards(split_folder, "s3://photos/new/packed", size=1)
    written = [path for method, path, _ in store.log if method == "PUT"]
    assert written[-1] == "/photos/new/packed/shards.json"
    s3 = client(store)
    for path in packed.iterdir():
        found = s3.get_object(Bucket="photos", Key=f"new/packed/{path.name}")["Body"].read()
        assert found == path.read_bytes()
    with pytest.raises(OutputError, match=r"s3://photos/new/packed is in use"):
        write_shards(split_folder, "s3://photos/new/packed")


def test_a_prefix_must_be_empty_at_any_depth(store, split_folder):
    upload(store, split_folder, "used")
    with pytest.raises(OutputError, match=r"s3://photos/used is in use: it holds train/blue/000"):
        write_shards(split_folder, "s3://photos/used")


def test_markers_of_folders_are_no_objects(store, flat_folder):
    """Web consoles create an empty object with a trailing slash for a new folder."""
    s3 = client(store)
    for key in ("new/", "new/red/", "new/red/inner/", "empty/"):
        s3.put_object(Bucket="photos", Key=key, Body=b"")
    upload(store, flat_folder / "red", "new/red/inner")
    s3.put_object(Bucket="photos", Key="new/0.png", Body=b"")  # an empty photo
    notes = []
    assert len(list(expand_sources(["s3://photos/new"], notes.append))) == 17
    assert notes == []
    assert object_store.list_folder("s3://photos/new") == {"0.png": 0}
    assert write_shards(flat_folder, "s3://photos/empty").manifest.images == 48


@pytest.mark.parametrize("key", ["odd//x.png", "odd/../x.png", "odd/./x.png", "odd/a\tb.png"])
def test_a_key_that_cannot_be_read_is_named_at_once(store, key):
    client(store).put_object(Bucket="photos", Key=key, Body=b"x")
    store.log.clear()
    with pytest.raises(DataError, match=r"s3://photos/odd: the key 'odd/.*' cannot be read"):
        object_store.list_objects("s3://photos/odd")
    with pytest.raises(DataError, match=r"the key 'odd/.*Rename the object"):
        object_store.read(f"s3://photos/{key}")
    assert len(store.log) == 1


def test_a_large_shard_is_written_in_parts(store, tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "_PART", 5 * 2**20)  # the minimum that S3 accepts
    contents = np.random.default_rng(1).bytes(12 * 2**20)
    (tmp_path / "large").write_bytes(contents)
    object_store.upload(tmp_path / "large", "s3://photos/large")
    assert b"".join(object_store.read_large("s3://photos/large", len(contents))) == contents


def test_google_cloud_storage(store, packed, monkeypatch):
    """The same library speaks Google's protocol, which differs here only in escaping keys."""
    account = {"gcs_base_url": os.environ["AWS_ENDPOINT_URL"], "disable_oauth": True}
    account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    split = folder.read_dataset("gs://photos/packed").splits["train"]
    assert files.read_file(split.path(3)) == files.read_file(packed / "train" / "blue" / "003.png")
    assert len(list(expand_sources(["gs://photos/packed"]))) == 54


def test_images_are_read_ahead_in_order_and_within_bounds(store, packed, monkeypatch):
    monkeypatch.setattr(remote_images, "AHEAD_IMAGES", 20)
    split = folder.read_dataset(URL).splits["train"]
    order = np.random.default_rng(7).permutation(len(split))
    opened = shards.open_shards(Path(URL))
    starts = {f"bytes={int(start) - 512}": row for row, start in enumerate(opened.offsets[:36])}
    source = read_ahead(order.tolist(), lambda index: [split.path(index)])
    first = next(source)
    deadline = time.monotonic() + 20
    while len(ranges(store)) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    requested = {starts[span.partition("-")[0]] for span in ranges(store)}
    assert requested == set(order[:20].tolist())
    assert first == order[0]
    found = [first]
    files.read_file(split.path(first))
    for index in source:
        found.append(index)
        files.read_file(split.path(index))
    assert found == order.tolist()
    assert len(ranges(store)) == len(split)  # none was read twice
    assert not remote_images._started._futures
    assert remote_images._started._bytes == 0


@pytest.mark.parametrize("batch_size", [12, 5])
def test_the_last_batches_of_a_pass_are_read_ahead_and_once(store, packed, monkeypatch, batch_size):
    """These are as many batches as the loader prepares at once, or a few more."""
    monkeypatch.setenv("RESNETKIT_OBJECT_CACHE_GB", "0")
    split = folder.read_dataset(URL).splits["train"]
    real = object_store.read
    lock = threading.Lock()
    together = [0]

    def slow(*arguments, **options):
        with lock:
            together.append(together[-1] + 1)
        time.sleep(0.1)
        try:
            return real(*arguments, **options)
        finally:
            with lock:
                together.append(together[-1] - 1)

    monkeypatch.setattr(object_store, "read", slow)
    batches = Loader(Images(split, Preprocessing(8, 8)), batch_size, workers=4).evaluation()
    assert sum(len(batch.labels) for batch in batches) == len(ranges(store)) == len(split)
    assert max(together) > 16
    del batches
    assert not remote_images._started._futures


def test_reading_ahead_that_is_given_up(store, packed):
    split = folder.read_dataset(URL).splits["train"]
    source = read_ahead(range(len(split)), lambda index: [split.path(index)])
    next(source)
    source.close()
    assert not remote_images._started._futures
    deadline = time.monotonic() + 20
    while remote_images._started._bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert remote_images._started._bytes == 0

    def readers():  # the server in this process has threads too, one for each connection
        return {thread for thread in threading.enumerate() if thread.name == "worker"}

    before = readers()
    assert files.read_file(split.path(9)) == files.read_file(packed / "train/blue/009.png")
    assert readers() <= before


def test_images_on_this_machine_are_not_read_ahead(tmp_path):
    taken = []
    source = read_ahead((taken.append(i) or i for i in range(9)), lambda i: [tmp_path / "a.jpg"])
    assert next(source) == 0
    assert taken == [0]


def entry(number, size=1000):
    contents = random.Random(number).randbytes(size)
    return hashlib.sha256(contents).digest(), contents


def total(root):
    return sum(object_cache._on_disk(path.stat().st_size) for path in root.glob("??/*"))


def test_the_cache_is_bounded_and_removes_the_oldest(tmp_path):
    kept = ObjectCache(tmp_path, 400_000)
    for number in range(300):
        kept.put(*entry(number))
        os.utime(kept._file(entry(number)[0]), (number, number))
        assert kept.get(entry(0)[0]) == entry(0)[1]  # used again and again
    assert total(tmp_path) <= 400_000
    assert kept.get(entry(299)[0]) == entry(299)[1]
    assert kept.get(entry(1)[0]) is None
    kept.put(*entry(1000, 500_000))  # larger than the cache
    assert total(tmp_path) <= 400_000
    ObjectCache(tmp_path, 100_000).put(*entry(2000))  # a smaller limit
    assert total(tmp_path) <= 100_000


def test_a_damaged_entry_is_not_used(tmp_path):
    kept = ObjectCache(tmp_path, 10**6)
    digest, contents = entry(1)
    kept.put(digest, contents)
    for wrong in (b"", contents[:-1], contents[:-1] + b"x"):
        kept._file(digest).write_bytes(wrong)
        assert kept.get(digest) is None
        assert not kept._file(digest).exists()
    kept.put(digest, contents)
    assert kept.get(digest) == contents


def test_an_entry_of_another_user_is_used(tmp_path, monkeypatch):
    kept = ObjectCache(tmp_path, 10**6)
    contents = b"x" * 1000
    digest = hashlib.sha256(contents).digest()
    kept.put(digest, contents)

    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    assert kept.get(digest) == contents


def test_unfinished_files_are_removed(tmp_path):
    (tmp_path / "ab").mkdir()
    old = tmp_path / "ab" / ".abc.1"
    new = tmp_path / "ab" / ".abc.2"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1, 1))
    ObjectCache(tmp_path, 10**6).put(*entry(1))
    assert (old.exists(), new.exists()) == (False, True)


def test_a_cache_that_cannot_be_written(store, packed, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").write_text("a file")
    split = folder.read_dataset(URL).splits["train"]
    assert files.read_file(split.path(0)) == files.read_file(packed / "train/blue/000.png")
    monkeypatch.setenv("RESNETKIT_OBJECT_CACHE_GB", "many")
    with pytest.raises(DataError, match="RESNETKIT_OBJECT_CACHE_GB is 'many'; expected a number"):
        files.read_file(split.path(1))


def _use_cache(root, seed):
    kept = ObjectCache(root, 2_000_000)
    rng = random.Random(seed)
    while True:
        digest, contents = entry(rng.randrange(400), 20_000)
        found = kept.get(digest)
        assert found in (None, contents)
        if found is None:
            kept.put(digest, contents)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills processes with a signal")
def test_killed_processes_leave_no_wrong_bytes(tmp_path):
    """Four processes share a cache that is too small for them, and are killed again and again."""
    context = multiprocessing.get_context("fork")
    rng = random.Random(5)
    running = []
    for seed in range(40):
        running.append(context.Process(target=_use_cache, args=(tmp_path, seed)))
        running[-1].start()
        time.sleep(rng.random() * 0.2)
        if len(running) == 4:
            victim = running.pop(rng.randrange(4))
            assert victim.is_alive()
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
    time.sleep(1)
    for process in running:
        assert process.is_alive()  # none of its assertions failed
        process.kill()
        process.join()
    complete = [path for path in tmp_path.glob("??/*") if not path.name.startswith(".")]
    assert len(complete) > 50
    for path in complete:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert total(tmp_path) <= 2_000_000 * 1.25


def test_bytes_of_an_open_image_can_be_read_in_parts(store, packed):
    split = folder.read_dataset(URL).splits["train"]
    with files.open_file(split.path(2)) as file:
        assert isinstance(file, io.BytesIO)
        assert file.seek(-3, os.SEEK_END) == len(file.getvalue()) - 3
