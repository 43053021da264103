import hashlib
import logging
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from resnetkit.errors import DownloadError, WeightsError
from resnetkit.models.weights import download
from resnetkit.models.weights.download import fetch
from resnetkit.models.weights.http import ATTEMPTS, check_scheme


def left_over(cache):
    return {p.name for p in cache.iterdir() if not p.name.endswith(".lock")}


def test_a_download_is_complete_and_its_hash_recorded(site, cache):
    path = fetch(site.published, progress=False)
    assert path == cache / f"net-{site.digest[:8]}.pth"
    assert path.read_bytes() == site.content
    record = path.with_name(path.name + ".sha256")
    assert record.read_text() == f"{site.digest}  {path.name}\n"
    assert left_over(cache) == {path.name, record.name}
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444 & ~_umask()


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current


def test_it_is_fetched_once(site, cache):
    for _ in range(3):
        fetch(site.published, progress=False)
    assert len(site.requests) == 1


def test_a_file_in_the_cache_of_pytorch_is_used(site, cache):
    cache.mkdir(parents=True)
    (cache / f"net-{site.digest[:8]}.pth").write_bytes(site.content)
    path = fetch(site.published, progress=False)
    assert site.requests == []
    assert path.with_name(path.name + ".sha256").read_text().startswith(site.digest)


@pytest.mark.parametrize("fault", ["cut", "close", "503", "500", "429", "408", "wrong part"])
def test_transient_errors_are_retried(site, cache, fault):
    site.faults = [fault, fault]
    assert fetch(site.published, progress=False).read_bytes() == site.content
    assert len(site.requests) == 3


def test_a_broken_download_resumes(site, cache):
    site.faults = ["cut", "503", "cut"]
    fetch(site.published, progress=False)
    half = len(site.content) // 2
    rest = half + (len(site.content) - half) // 2
    asked = [wanted for _, wanted in site.requests]
    assert asked == [None, f"bytes={half}-", f"bytes={half}-", f"bytes={rest}-"]


def test_only_attempts_without_a_new_byte_count(site, cache):
    site.faults = ["cut"] * (ATTEMPTS + 3)
    assert fetch(site.published, progress=False).read_bytes() == site.content


def test_a_later_process_resumes(site, cache):
    site.faults = ["cut", *["503"] * ATTEMPTS]
    with pytest.raises(DownloadError, match=r"503.*5 times in a row; the bytes received are kept"):
        fetch(site.published, progress=False)
    assert not (cache / f"net-{site.digest[:8]}.pth").exists()
    fetch(site.published, progress=False)
    assert site.requests[-1][1] == f"bytes={len(site.content) // 2}-"


def test_a_changed_file_is_downloaded_again(site, cache):
    site.faults = ["cut", *["503"] * ATTEMPTS]
    with pytest.raises(DownloadError):
        fetch(site.address + "/model.pth", progress=False)
    site.files["/model.pth"], site.etag = b"new" * 1000, '"two"'
    assert fetch(site.address + "/model.pth", progress=False).read_bytes() == b"new" * 1000


@pytest.mark.parametrize("etag", ['"two"', None, 'W/"weak"'])
def test_a_server_that_continues_a_changed_file_is_noticed(site, cache, etag):
    site.faults = ["cut", *["503"] * ATTEMPTS]
    with pytest.raises(DownloadError):
        fetch(site.address + "/model.pth", progress=False)
    new = b"new" * 1_000_000
    site.files["/model.pth"], site.etag, site.heeds_if_range = new, etag, False
    assert fetch(site.address + "/model.pth", progress=False).read_bytes() == new
    assert [wanted for _, wanted in site.requests][-2:] == [
        f"bytes={len(site.content) // 2}-",
        None,
    ]


def test_a_wrong_range_restarts_the_download(site, cache):
    site.faults = ["cut", "wrong part"]
    assert fetch(site.published, progress=False).read_bytes() == site.content
    assert [w for _, w in site.requests] == [None, f"bytes={len(site.content) // 2}-", None]


def test_an_invalid_content_length_raises(site, cache):
    site.length = "many"
    with pytest.raises(DownloadError, match=r"Content-Length 'many', 5 times in a row$"):
        fetch(site.published, progress=False)


def test_a_server_that_never_resumes_raises(site, cache):
    site.faults = ["cut", "wrong part"] * 20
    with pytest.raises(DownloadError, match="5 times in a row"):
        fetch(site.published, progress=False)


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"url": 3}'])
def test_a_damaged_note_is_ignored(site, cache, note):
    site.faults = ["cut", *["503"] * ATTEMPTS]
    with pytest.raises(DownloadError):
        fetch(site.published, progress=False)
    (written,) = cache.glob(".*.part.json")
    written.write_bytes(note)
    assert fetch(site.published, progress=False).read_bytes() == site.content
    assert site.requests[-1][1] is None


def test_a_damaged_record_is_ignored(site, cache):
    path = fetch(site.published, progress=False)
    record = path.with_name(path.name + ".sha256")
    record.write_bytes(b"\xff\xfe\x00")
    assert fetch(site.published, progress=False) == path
    assert record.read_text().startswith(site.digest)
    assert len(site.requests) == 1


def test_without_a_version_the_download_restarts(site, cache):
    site.faults, site.etag = ["cut"], None
    assert fetch(site.published, progress=False).read_bytes() == site.content
    assert [wanted for _, wanted in site.requests] == [None, None]


def test_a_partial_file_longer_than_the_file_is_discarded(site, cache):
    site.faults = ["cut", *["503"] * ATTEMPTS]
    with pytest.raises(DownloadError):
        fetch(site.address + "/model.pth", progress=False)
    site.files["/model.pth"] = site.content[:1000]
    assert fetch(site.address + "/model.pth", progress=False).read_bytes() == site.content[:1000]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_missing_files_are_not_retried(site, cache, status):
    site.faults = [str(status)]
    with pytest.raises(DownloadError, match=f"answered {status} .*check the address"):
        fetch(site.published, progress=False)
    assert len(site.requests) == 1
    assert left_over(cache) == set()


def test_a_flipped_bit_restarts_the_download(site, cache, caplog):
    site.faults = ["flip"]
    assert fetch(site.published, progress=False).read_bytes() == site.content
    assert "arrived with SHA-256" in caplog.text
    assert [wanted for _, wanted in site.requests] == [None, None]


def test_a_file_with_another_hash_is_not_kept(site, cache):
    site.files = dict.fromkeys(site.files, b"something else")
    with pytest.raises(WeightsError, match=f"its name says {site.digest[:8]}") as caught:
        fetch(site.published, progress=False)
    assert hashlib.sha256(b"something else").hexdigest()[:16] in str(caught.value)
    assert isinstance(caught.value, RuntimeError)  # what PyTorch raises
    assert left_over(cache) == set()


def test_the_hash_check_can_be_skipped(site, cache):
    site.files = dict.fromkeys(site.files, b"something else")
    path = fetch(site.published, progress=False, check_hash=False)
    assert path.read_bytes() == b"something else"


def test_a_damaged_cached_file_is_downloaded_again(site, cache, caplog):
    path = fetch(site.address + "/model.pth", progress=False)
    path.write_bytes(site.content[:-1] + b"?")
    assert fetch(site.address + "/model.pth", progress=False).read_bytes() == site.content
    assert "is damaged" in caplog.text
    assert len(site.requests) == 2


def test_an_empty_record_is_ignored(site, cache):
    path = fetch(site.published, progress=False)
    path.with_name(path.name + ".sha256").write_text("")
    path.write_bytes(b"?")
    assert fetch(site.published, progress=False).read_bytes() == site.content


def test_equal_names_from_two_addresses_are_two_files(site, cache):
    site.files["/other/model.pth"] = b"other"
    first = fetch(site.address + "/model.pth", progress=False)
    second = fetch(site.address + "/other/model.pth", progress=False)
    assert (first.read_bytes(), second.read_bytes()) == (site.content, b"other")


def test_a_mirror_replaces_the_published_host(site, cache, monkeypatch):
    monkeypatch.setenv("RESNETKIT_MIRROR", site.address + "/")
    url = f"https://download.pytorch.org/models/net-{site.digest[:8]}.pth"
    assert fetch(url, progress=False).read_bytes() == site.content


def test_offline_says_where_the_file_belongs(site, cache, monkeypatch):
    monkeypatch.setenv("RESNETKIT_OFFLINE", "1")
    with pytest.raises(DownloadError, match="put it there") as caught:
        fetch(site.published)
    assert str(cache / f"net-{site.digest[:8]}.pth") in str(caught.value)
    assert site.requests == []
    (cache / f"net-{site.digest[:8]}.pth").write_bytes(site.content)
    assert fetch(site.published).is_file()


@pytest.mark.parametrize(
    "url", ["http://example.org/a.pth", "ftp://example.org/a", "file:///etc/a"]
)
def test_other_schemes_raise(cache, url):
    with pytest.raises(DownloadError, match="expected an https:// address"):
        fetch(url)


def test_a_mirror_may_use_plain_http(monkeypatch):
    monkeypatch.setenv("RESNETKIT_MIRROR", "http://mirror.internal:8080/pytorch")
    check_scheme("http://mirror.internal:8080/pytorch/models/a.pth")
    with pytest.raises(DownloadError):
        check_scheme("http://mirror.internal/pytorch/models/a.pth")


def test_an_address_without_a_file_name_raises(cache):
    with pytest.raises(DownloadError, match="names no file"):
        fetch("https://example.org/")


def test_a_redirect_to_plain_http_raises(site, cache):
    site.faults = ["http://example.org/a.pth"]
    with pytest.raises(DownloadError, match=r"example.org/a.pth was not fetched"):
        fetch(site.published, progress=False)


def test_a_cache_that_cannot_be_created_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="TORCH_HOME"):
        fetch("https://example.org/a.pth", tmp_path / "file" / "below")


def test_a_read_only_cache_is_used(site, cache, monkeypatch):
    path = fetch(site.published, progress=False)
    monkeypatch.setattr(download.os, "access", lambda *_: False)
    assert fetch(site.published, progress=False) == path
    with pytest.raises(DownloadError, match="cannot be written to"):
        fetch(site.address + "/model.pth")


def _refuse(path):
    raise PermissionError(13, "Permission denied", str(path))


def test_a_file_locked_by_another_user_is_read(site, cache, monkeypatch):
    path = fetch(site.published, progress=False)
    monkeypatch.setattr(download, "locked", _refuse)
    assert fetch(site.published, progress=False) == path
    path.with_name(path.name + ".sha256").unlink()
    assert fetch(site.published, progress=False) == path
    assert not path.with_name(path.name + ".sha256").exists()
    path.write_bytes(b"?")
    words = r"is missing or damaged, and cannot be written .*Permission denied.*TORCH_HOME"
    with pytest.raises(DownloadError, match=words):
        fetch(site.published, progress=False)


@pytest.mark.parametrize("refused", ["sha256", "publish", "write_text"])
def test_permission_errors_name_the_cache(site, cache, monkeypatch, refused):
    fetch(site.published, progress=False)
    monkeypatch.setattr(download, refused, lambda path, *_: _refuse(path))
    with pytest.raises(DownloadError, match=r"cannot be used .*Permission denied.*TORCH_HOME"):
        fetch(site.address + "/model.pth" if refused != "sha256" else site.published)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_two_users_share_a_cache(site, cache, monkeypatch):
    with tempfile.TemporaryDirectory() as home:  # pytest's own folders are closed to other users
        shared = Path(home) / "hub" / "checkpoints"
        shared.mkdir(parents=True)
        Path(home).chmod(0o755)
        shared.chmod(0o1777)
        monkeypatch.setenv("TORCH_HOME", home)
        path = fetch(site.published, progress=False)
        code = (
            "import os, sys; from resnetkit.models.weights.download import fetch\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "print(fetch(sys.argv[1], progress=False))"
        )
        command = [sys.executable, "-c", code, site.published]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert shown.stdout == f"{path}\n", shown.stderr


def test_two_processes_download_once(site, cache):
    site.delay = 0.5
    code = "from resnetkit.models.weights.download import fetch; print(fetch(sys.argv[1]))"
    code = f"import sys; {code}"
    command = [sys.executable, "-c", code, site.published]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert printed == {f"{cache / site.published.rpartition('/')[2]}\n"}
    assert len(site.requests) == 1


def test_progress_is_shown_and_can_be_silenced(site, cache, monkeypatch, capsys):
    steps = []

    def bar(what, total):
        import contextlib

        assert what.startswith("net-")
        assert total == 4
        return contextlib.nullcontext(steps.append)

    monkeypatch.setattr("resnetkit.progress.bar", bar)
    fetch(site.published)
    assert len(steps) == 3
    site.files["/b.pth"] = site.content
    fetch(site.address + "/b.pth", progress=False)
    assert len(steps) == 3


def test_retries_are_logged(site, cache, caplog):
    caplog.set_level(logging.INFO)
    site.faults = ["503"]
    fetch(site.published, progress=False)
    assert "trying again" in caplog.text


@pytest.mark.parametrize("name", ["net-20240115.pth", "net-20240115123456.pth"])
def test_a_date_in_a_name_is_no_hash(site, cache, name):
    site.files[f"/{name}"] = site.content
    path = fetch(f"{site.address}/{name}", progress=False)
    assert path.read_bytes() == site.content
    assert path.name != name  # without a hash, a name is ambiguous


@pytest.mark.parametrize("url", ["https://example.com/a%00.pth", "https://example.com/%00"])
def test_an_address_that_names_no_possible_file_raises(url, cache):
    with pytest.raises(DownloadError, match="names no file"):
        fetch(url, progress=False)
