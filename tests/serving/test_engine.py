"""The engine crashes, hangs, and starts again."""

from __future__ import annotations

import base64
import ctypes
import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from resnetkit.errors import ArtefactError, ImageError
from resnetkit.export import sessions
from resnetkit.serving.engine import Engine, smallest_fast
from resnetkit.serving.logs import JsonLog
from resnetkit.serving.served import open_served
from resnetkit.serving.server import Server

from .conftest import QUICK, FakeServed, Reply, Running, form, png, running, wait_for


class Explaining(FakeServed):
    """A model whose explanations take as long as you choose."""

    can_explain = True

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.explain_seconds = seconds
        self.explained = 0
        self.decoders: set[str] = set()
        self.failure: Exception | None = None

    def show(self, contents):
        self.decoders.add(threading.current_thread().name)
        if contents == png((9, 9, 9)):
            raise ImageError("the image: there is not enough memory") from MemoryError()
        return super().show(contents)

    def explain(self, inputs, shown, target):
        assert (inputs == shown).all()
        self.explained += 1
        time.sleep(self.explain_seconds)
        if self.failure is not None:
            raise self.failure
        return b"class %d" % target


def ask(
    server: Running, count: int, replies: list[Reply], image: bytes | None = None
) -> list[threading.Thread]:
    body = png() if image is None else image
    threads = [
        threading.Thread(target=lambda: replies.append(server.request(body=body)))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads


def kill(server: Running) -> None:
    """Kill the engine's thread, whatever it is doing."""
    ident = ctypes.c_ulong(server.server.engine._worker.thread.ident)
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert raise_in(ident, ctypes.py_object(SystemExit)) == 1
    server.server.queue.wake()


@pytest.mark.parametrize("crash", [RuntimeError("broken"), MemoryError(), SystemExit(3)])
def test_a_crash_fails_its_batch_and_a_new_engine_starts(fake, crash):
    with running(fake) as server:
        fake.blocked.clear()
        fake.crash = crash
        replies: list[Reply] = []
        (first,) = ask(server, 1, replies)
        wait_for(lambda: fake.batches == [1])
        waiting = ask(server, 2, replies)  # they are not in the batch that crashes
        wait_for(lambda: server.server.queue.images == 3)
        fake.blocked.set()
        for thread in (first, *waiting):
            thread.join()
        assert sorted(reply.status for reply in replies) == [200, 200, 500]
        failed = next(reply for reply in replies if reply.status == 500)
        assert failed.json["reason"] == "engine_crashed"
        assert server.request(body=png()).status == 200
        assert server.metric("resnetkit_engine_starts_total") == 2
        assert '"event": "engine_crashed"' in server.log.getvalue()


def test_an_engine_that_is_killed_is_noticed_and_started_again(fake):
    """Here, the engine's thread dies while it waits for images."""
    with running(fake) as server:
        worker = server.server.engine._worker
        kill(server)
        wait_for(lambda: not worker.thread.is_alive())
        assert wait_for(lambda: server.request("GET", "/ready").status == 200, 5) < 5
        assert server.server.engine._worker is not worker
        assert server.request(body=png()).status == 200


class SlowStart(FakeServed):
    """An engine that takes a while to restart."""

    starts = 0

    def start(self):
        self.starts += 1
        if self.starts > 1:
            time.sleep(0.5)
        return self.compute


def test_while_the_engine_starts_again_the_server_is_not_ready():
    fake = SlowStart()
    with running(fake) as server:
        fake.crash = RuntimeError("broken")
        assert server.request(body=png()).status == 500
        reply = server.request("GET", "/ready")
        assert (reply.status, reply.json["reason"]) == (503, "engine_crashed")
        refused = server.request(body=png())
        assert (refused.status, refused.json["reason"]) == (503, "engine_crashed")
        assert refused.headers["retry-after"] == "2"
        assert server.request("GET", "/live").status == 200
        server.wait_ready(5)
        assert server.request(body=png()).status == 200


def test_a_batch_that_hangs_counts_as_a_crash(fake):
    with running(fake, stuck_seconds=0.5) as server:
        fake.blocked.clear()
        replies: list[Reply] = []
        (stuck,) = ask(server, 1, replies)
        wait_for(lambda: server.request("GET", "/ready").status == 503, 3)
        stuck.join()
        assert replies[0].status == 500
        server.wait_ready(5)
        fake.blocked.set()
        assert server.request(body=png()).status == 200
        assert server.server.queue.images == 0


class Overflowing(FakeServed):
    """A network whose output is NaN for red images."""

    def compute(self, inputs):
        for answer in super().compute(inputs):
            is_red = answer["logits"].argmax() == 0 and answer["logits"].any()
            yield {**answer, "probabilities": np.full(3, np.nan)} if is_red else answer


def test_an_output_that_is_not_finite_is_an_error():
    red, green = png((200, 30, 30)), png((30, 200, 30))
    with running(Overflowing()) as server:
        reply = server.request(body=red)
        assert (reply.status, reply.json["reason"]) == (500, "not_finite")
        body, kind = form(("a.png", red), ("b.png", green))
        rows = server.request(body=body, Content_Type=kind).json
        assert "NaN or infinite" in rows[0]["error"]
        assert (rows[0].get("class"), rows[1]["class"]) == (None, "green")


def test_what_an_explanation_shows_is_decoded_by_the_decoders():
    fake = Explaining()
    with running(fake) as server:
        rows = server.request(path="/predict?explain=true", body=png((30, 200, 30))).json
        assert base64.b64decode(rows["explanation"].split(",")[1]) == b"class 1"
        assert all(name.startswith("decoder") for name in fake.decoders)
        reply = server.request(path="/predict?explain=true", body=png((9, 9, 9)))
        assert (reply.status, reply.json["reason"]) == (503, "memory")
        fake.failure = MemoryError()
        reply = server.request(path="/predict?explain=true", body=png())
        assert (reply.status, reply.json["reason"]) == (503, "memory")
        assert server.metric("resnetkit_engine_starts_total") == 1


def test_nothing_is_explained_for_nobody():
    fake = Explaining(seconds=0.3)
    with running(fake) as server:
        body, kind = form(*[("a.png", png())] * 8)
        options = {"Content_Type": kind, "X_Deadline_Ms": "400"}
        reply = server.request(path="/predict?explain=true", body=body, **options)
        assert reply.status == 504
        assert server.request(body=png()).status == 200
        assert fake.explained <= 3
        wait_for(lambda: not server.server.queue.images)


def test_explanations_do_not_hold_up_other_answers():
    fake = Explaining(seconds=0.5)
    with running(fake) as server:
        fake.blocked.clear()
        replies: list[Reply] = []
        threads = ask(server, 1, replies)
        wait_for(lambda: fake.batches == [1])
        path = "/predict?explain=true"
        explained = [
            threading.Thread(target=server.request, kwargs={"path": path, "body": png()})
            for _ in range(2)
        ]
        for thread in explained:
            thread.start()
        threads += ask(server, 1, replies)
        wait_for(lambda: len(server.server.queue._decoded) == 3)
        fake.blocked.set()
        wait_for(lambda: len(replies) == 2, 5)
        assert fake.batches == [1, 3]
        assert fake.explained <= 1
        wait_for(lambda: server.server.queue.images <= 1)  # not delivered all at once
        assert fake.explained <= 2
        for thread in (*threads, *explained):
            thread.join()


class Broken(FakeServed):
    """A model that fails its verification."""

    def verify(self):
        raise ArtefactError("does not answer its golden images")


def test_a_model_that_cannot_start_ends_the_server():
    server = Server(Broken(), port=0, bounds=QUICK, log=JsonLog(io.StringIO()))
    with pytest.raises(ArtefactError, match="golden images"):
        server.run()


@pytest.mark.slow
def test_a_model_file_starts_again_without_an_export_and_with_the_same_answers(tiny_model):
    photo = png((200, 30, 30), size=(60, 40))
    served = open_served(tiny_model, engine="onnx")
    with running(served, batch_images=2) as server:
        before = server.request(body=photo).json
        kill(server)
        engine = server.server.engine
        wait_for(lambda: engine.starts == 2 and engine.ready, 60)
        after = server.request(body=photo).json
        assert after["class"] == before["class"]
        assert after["probability"] == pytest.approx(before["probability"], abs=1e-4)


class Measured(FakeServed):
    """A network whose batches take a fixed time plus 20 ms per image."""

    def __init__(self, fixed: float):
        super().__init__()
        self.fixed = fixed
        self.sizes: list[int] = []

    def compute(self, inputs):
        self.sizes.append(len(inputs))
        time.sleep(self.fixed + 0.02 * len(inputs))
        return super().compute(inputs)


def test_batches_are_as_large_as_their_measured_time_allows():
    fake = Measured(fixed=0.02)
    with running(fake, batch_seconds=0.11, batch_images=32) as server:
        engine = server.server.engine
        assert engine.batch_images == smallest_fast(engine.latencies)
        assert all(seconds <= 0.11 for images, seconds in engine.latencies.items() if images > 1)
        assert fake.sizes[:4] == [1, 1, 2, 2]  # each size runs before the server is ready
        before = engine.batch_images
        fake.sizes.clear()
        fake.crash = RuntimeError("broken")
        server.request(body=png())
        server.wait_ready()
        assert fake.sizes == [1, *range(1, before + 1)]  # a restart runs each size once, untimed
        assert engine.batch_images == before


@pytest.mark.parametrize(
    ("fixed", "measured", "warmed", "largest"),
    [(0, [1, 2, 4], [], 1), (20, [1, 2, 4, 8, 16], [3, *range(5, 8), *range(9, 16)], 16)],
)
def test_sizes_are_measured_until_larger_ones_gain_nothing(
    monkeypatch, fixed, measured, warmed, largest
):
    clock = 0.0
    ran = []

    def compute(inputs):
        nonlocal clock
        ran.append(len(inputs))
        clock += fixed + len(inputs)
        return iter(inputs)

    monkeypatch.setattr("resnetkit.serving.engine.time", SimpleNamespace(monotonic=lambda: clock))
    bounds = replace(QUICK, batch_images=16, batch_seconds=100)
    engine = Engine(FakeServed(), None, None, bounds=bounds, log=None)
    engine.measure(compute)
    assert ran == [*(size for size in measured for _ in range(2)), *warmed]
    assert engine.batch_images == largest


def test_batches_that_gain_nothing_are_not_used():
    """Two images take twice as long as one, and three a little less than three times as long."""
    assert smallest_fast({1: 0.020, 2: 0.040, 3: 0.0595}) == 1
    assert smallest_fast({1: 0.040, 2: 0.060, 3: 0.080, 4: 0.100}) == 4


def test_a_full_queue_is_answered_in_batches_of_the_largest_size(fake):
    with running(fake, batch_images=4) as server:
        fake.blocked.clear()
        replies: list[Reply] = []
        threads = ask(server, 1, replies)
        wait_for(lambda: fake.batches == [1])
        threads += ask(server, 10, replies)
        wait_for(lambda: len(server.server.queue._decoded) == 10)
        fake.blocked.set()
        for thread in threads:
            thread.join()
        assert fake.batches == [1, 4, 4, 2]


def test_an_exported_file_whose_golden_images_disagree_is_not_served(exported, tmp_path):
    content = exported.read_bytes()
    path = tmp_path / "changed.onnx"
    place = content.rindex(b'"class"')  # the recorded class of the last golden image
    name = content[place : place + 40].split(b'"')[3]
    other = {b"red": b"tan", b"blue": b"gray", b"green": b"brown"}[name]
    path.write_bytes(content[:place] + content[place:].replace(name, other, 1))
    with pytest.raises(ArtefactError, match="not give the recorded answers for its golden images"):
        open_served(path).verify()
    assert open_served(exported).verify() == "17 golden images agree"


def test_the_runtime_that_was_verified_is_the_first_to_serve(exported, monkeypatch):
    started = []
    start = sessions.start
    monkeypatch.setattr(
        sessions, "start", lambda *args, **options: started.append(args) or start(*args, **options)
    )
    served = open_served(exported)
    served.verify()
    for starts in (1, 2):  # the second is after a crash
        (answer,) = served.start()([served.example()])
        assert answer["probabilities"].sum() == pytest.approx(1, abs=1e-5)
        assert len(started) == starts


@pytest.mark.slow
def test_memory_is_flat(exported):
    """After 500 requests with images of several sizes, another 500 need hardly any more memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("reads /proc")

    def resident() -> int:
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
        return 1024 * int(line.split()[1])

    rng = np.random.default_rng(0)
    photos = [png(size=(int(w), int(h))) for w, h in rng.integers(20, 800, (20, 2))]
    with running(open_served(exported)) as server:
        seen = []
        for _ in range(4):
            replies: list[Reply] = []
            for number in range(50):
                for thread in ask(server, 5, replies, photos[number % 20]):
                    thread.join()
            assert {reply.status for reply in replies} == {200}
            seen.append(resident())
        assert seen[-1] - seen[1] < 0.03 * seen[1] + 16 * 2**20, seen
        lines = [json.loads(line) for line in server.log.getvalue().splitlines()]
        assert not [line for line in lines if line["level"] == "error"]
