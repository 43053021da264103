"""The queue: bounds, order, deadlines."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace

import pytest

from resnetkit.serving.bounds import Bounds
from resnetkit.serving.queue import Queue, Ticket
from resnetkit.serving.refusals import Refusal


def ticket(pixels: int = 10, seconds: float = 60, answers: list | None = None) -> Ticket:
    deliver = (lambda answer: None) if answers is None else answers.append
    return Ticket(b"x", pixels, time.monotonic() + seconds, deliver)


def take(queue: Queue, tickets: list[Ticket]) -> list[Ticket]:
    """Admit images, decode them, and let the engine begin a batch of them."""
    queue.admit(tickets)
    for one in tickets:
        assert queue.take_encoded() is one
        queue.put_decoded(one, "pixels", 1)
    return queue.take_batch(len(tickets), 100, threading.Event())


def test_admission_is_all_or_nothing():
    queue = Queue(replace(Bounds(), queue_images=3, queue_pixels=100))
    queue.admit([ticket(), ticket()])
    with pytest.raises(Refusal, match="2 images are waiting") as caught:
        queue.admit([ticket(), ticket()])
    assert (caught.value.status, caught.value.reason) == (503, "queue_full")
    with pytest.raises(Refusal, match="pixels are waiting"):
        queue.admit([ticket(90)])
    assert (queue.images, queue.pixels) == (2, 20)


def test_one_image_of_any_size_is_admitted_to_an_empty_queue():
    queue = Queue(replace(Bounds(), queue_pixels=100))
    queue.admit([ticket(1000)])
    assert queue.pixels == 1000


def test_several_images_that_may_never_wait_together_are_refused_for_good():
    queue = Queue(replace(Bounds(), queue_pixels=100))
    with pytest.raises(Refusal, match="110 pixels in total, but at most 100 may wait") as caught:
        queue.admit([ticket(60), ticket(50)])
    assert (caught.value.status, caught.value.reason) == (413, "too_many_pixels")
    assert caught.value.retry_after is None
    queue.admit([ticket(60), ticket(40)])


def test_images_leave_in_order_within_the_limits_of_a_batch():
    queue = Queue(Bounds())
    stop = threading.Event()
    tickets = [ticket() for _ in range(6)]
    queue.admit(tickets)
    for size in (5, 5, 5, 50, 5, 5):
        one = queue.take_encoded()
        queue.put_decoded(one, f"image of {size}", size)
    assert queue.take_batch(images=2, pixels=100, stop=stop) == tickets[:2]
    assert queue.take_batch(images=9, pixels=20, stop=stop) == tickets[2:3]
    assert queue.take_batch(images=9, pixels=20, stop=stop) == tickets[3:4]  # alone over the limit
    assert queue.take_batch(images=9, pixels=20, stop=stop) == tickets[4:]
    queue.finish(tickets, [None] * 6)
    assert (queue.images, queue.pixels) == (0, 0)


def test_dead_images_are_dropped_before_they_cost_anything():
    queue = Queue(Bounds())
    stop = threading.Event()
    late, gone, later, fine = tickets = [
        ticket(seconds=0.05), ticket(), ticket(seconds=0.2), ticket(),
    ]  # fmt: skip
    queue.admit(tickets)
    queue.withdraw([gone])
    time.sleep(0.06)
    assert queue.take_encoded() is later
    assert queue.take_encoded() is fine
    queue.put_decoded(later, "pixels", 1)
    queue.put_decoded(fine, "pixels", 1)
    queue.put_decoded(gone, "pixels", 1)
    time.sleep(0.2)
    assert queue.take_batch(images=9, pixels=9, stop=stop) == [fine]
    assert queue.dropped == 3
    assert late.inputs is None
    answers: list[str] = []
    fine.deliver = answers.append
    queue.finish([fine, later], ["yes", "no"])
    assert answers == ["yes"]
    assert (queue.images, queue.pixels) == (0, 0)


def test_the_time_per_image_is_measured():
    queue = Queue(Bounds())
    for _ in range(3):
        batch = take(queue, [ticket(), ticket()])
        time.sleep(0.05)
        queue.finish(batch, [None, None])
        queue.end_batch(is_complete=True)
    queue.admit([ticket() for _ in range(10)])
    assert 0.2 < queue.retry_after() < 1
    with pytest.raises(Refusal, match="longer than the deadline") as caught:
        queue.admit([ticket(seconds=0.05)])
    assert caught.value.retry_after == pytest.approx(queue.retry_after(), rel=0.5)


def test_images_that_take_longer_than_earlier_ones_are_noticed_before_they_are_done():
    queue = Queue(Bounds())
    take(queue, [ticket()])
    queue.admit([ticket() for _ in range(20)])
    queue.admit([ticket(seconds=1)])  # nothing has been measured yet
    time.sleep(0.1)
    with pytest.raises(Refusal, match="longer than the deadline"):
        queue.admit([ticket(seconds=1)])
    queue.end_batch(is_complete=False)  # the engine crashed
    queue.admit([ticket(seconds=1)])


def test_images_that_decode_slowly_make_others_wait_too():
    queue = Queue(Bounds(), decoders=2)
    queue.admit([ticket(pixels=1_000_000)])
    one = queue.take_encoded()
    one.taken -= 10
    queue.put_decoded(one, "pixels", 1)
    queue.admit([ticket(pixels=1_000_000) for _ in range(20)])
    assert 100 < queue.retry_after() < 110  # 20 images of 10 s each, and two decoders
    with pytest.raises(Refusal, match="longer than the deadline"):
        queue.admit([ticket(seconds=50)])
    queue.withdraw(list(queue._encoded)[10:])
    assert 50 < queue.retry_after() < 60
    taken = [queue.take_encoded() for _ in range(10)]
    assert queue.retry_after() > 50  # being decoded is not decoded
    queue.finish(taken, [ValueError()] * 10)
    assert queue.retry_after() == 0
    assert queue._undecoded == 0


def test_tiny_images_do_not_raise_the_expected_wait_for_photos():
    """At the rate of an image of 1 pixel that took 0.4 ms, a photo would take more than an hour."""
    queue = Queue(Bounds())
    queue.admit([ticket(pixels=1)])
    one = queue.take_encoded()
    one.taken = time.monotonic() - 0.0004
    queue.put_decoded(one, "pixels", 1)
    queue.admit([ticket(pixels=12_000_000)])
    assert queue.retry_after() < 10


def test_only_the_time_of_the_engine_counts_per_image():
    """Images that cannot be decoded do not pull the average down; slow decoding does not count."""
    queue = Queue(Bounds())
    batch = take(queue, [ticket()])
    time.sleep(0.1)
    queue.finish(batch, [None])
    queue.end_batch(is_complete=True)
    for _ in range(20):
        queue.admit([broken := ticket()])
        queue.take_encoded()
        queue.finish([broken], [ValueError()])
    queue.admit([ticket()])
    before = queue.retry_after()
    assert before > 0.09
    time.sleep(0.3)
    assert queue.retry_after() == before


def test_a_deadline_that_has_passed_is_no_reason_to_try_again():
    with pytest.raises(Refusal, match="deadline passed") as caught:
        Queue(Bounds()).admit([ticket(seconds=-1)])
    assert (caught.value.status, caught.value.retry_after) == (504, None)


def test_waiting_ends_with_the_queue():
    queue = Queue(Bounds())
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(queue.take_encoded())),
        threading.Thread(target=lambda: found.append(queue.take_batch(1, 1, threading.Event()))),
    ]
    for thread in threads:
        thread.start()
    queue.close()
    for thread in threads:
        thread.join(5)
    assert sorted(found, key=str) == [[], None] or sorted(found, key=str) == [None, []]


def test_with_many_threads_every_image_is_answered_or_dropped_once():
    queue = Queue(replace(Bounds(), queue_images=50))
    stop = threading.Event()
    counted: list[int] = []
    refused = 0

    def decode() -> None:
        while (one := queue.take_encoded()) is not None:
            queue.put_decoded(one, "pixels", 1)

    def compute() -> None:
        while batch := queue.take_batch(8, 100, stop):
            queue.finish(batch, [1] * len(batch))

    workers = [threading.Thread(target=work) for work in (decode, decode, decode, compute)]
    for worker in workers:
        worker.start()
    rng = random.Random(0)
    withdrawn = []
    for _ in range(3000):
        one = ticket(seconds=rng.choice([60, 60, 0.0005]), answers=counted)
        try:
            queue.admit([one])
        except Refusal:
            refused += 1
            continue
        if rng.random() < 0.1:
            queue.withdraw([one])
            withdrawn.append(one)
    deadline = time.monotonic() + 10
    while queue.images and time.monotonic() < deadline:
        time.sleep(0.01)
    queue.close()
    for worker in workers:
        worker.join(5)
    assert (queue.images, queue.pixels) == (0, 0)
    assert len(counted) + queue.dropped + refused == 3000
    assert queue.dropped > 0
