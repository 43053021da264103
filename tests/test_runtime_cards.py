from __future__ import annotations

from contextlib import contextmanager, nullcontext
from datetime import timedelta
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from resnetkit import hosts, runtime
from resnetkit.data import device_loader
from resnetkit.data.loader import Batch
from resnetkit.errors import RecipeError

SECOND = torch.device("cuda", 1)


@pytest.fixture
def cards(monkeypatch):
    """Simulate two GPUs, and record the device of each call; None means the first GPU.

    Returns the recorded calls and the compute capability, which a test can change.
    """
    asked: list[tuple[str, object]] = []
    found = SimpleNamespace(asked=asked, capability=(8, 0))

    def patch(name, give):
        def call(device=None, *more, **settings):
            asked.append((name, device))
            return give()

        monkeypatch.setattr(torch.cuda, name, call)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    event = SimpleNamespace(synchronize=lambda: None)
    stream = SimpleNamespace(record_event=lambda: event, wait_event=lambda event: None)
    patch("get_device_capability", lambda: found.capability)
    patch("get_device_properties", lambda: SimpleNamespace(major=found.capability[0]))
    patch("get_device_name", lambda: "a card")
    patch("current_device", lambda: 0)
    patch("synchronize", lambda: None)
    patch("current_stream", lambda: stream)
    patch("Stream", lambda: stream)
    patch("device", nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return found


def test_the_second_gpu_never_touches_the_first(cards):
    where = runtime.pick("cuda:1")
    assert where.device == SECOND
    where.synchronize()
    assert runtime.environment(where.device)["gpu"] == "a card"
    here = mock.MagicMock(spec=torch.Tensor, device=SECOND)
    runtime.read_later(here)()
    batch = Batch(mock.MagicMock(spec=torch.Tensor), mock.MagicMock(spec=torch.Tensor), None)
    list(device_loader.to_device([batch, batch], SECOND))
    batch.images.pin_memory.return_value.to.assert_called_with(SECOND, non_blocking=True)
    names = {name for name, _ in cards.asked}
    assert names >= {"get_device_capability", "get_device_name", "synchronize", "current_stream",
                     "Stream", "device"}  # fmt: skip
    assert [call for call in cards.asked if call[1] != SECOND] == []


def test_a_cpu_run_touches_no_gpu(cards):
    where = runtime.pick("cpu")
    where.synchronize()
    runtime.environment(where.device)
    assert cards.asked == []


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
)
def test_the_precision_follows_the_gpu(cards, capability, precision):
    cards.capability = capability
    where = runtime.pick("cuda:0")
    assert where.precision == precision
    assert where.scaler().is_enabled() == (precision == "fp16")
    assert runtime.pick("cuda:0", "fp32").precision == "fp32"
    assert runtime.pick("cuda:0", "fp16").precision == "fp16"


def test_apple_devices_have_no_fp16(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert runtime.pick("mps").precision == "fp32"
    with pytest.raises(RecipeError, match="fp16 is for CUDA GPUs, and this run is on mps"):
        runtime.pick("mps", "fp16")


def tf32():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return [cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]


def test_fp32_is_not_tf32_and_the_settings_are_restored():
    before = tf32()
    assert before[1] == "tf32"  # PyTorch's default for convolutions
    with pytest.raises(KeyError), runtime.full_fp32(SECOND):
        assert tf32() == ["ieee"] * 3
        with runtime.full_fp32(SECOND):
            assert tf32() == ["ieee"] * 3
        assert tf32() == ["ieee"] * 3
        raise KeyError
    assert tf32() == before
    first, second = runtime.full_fp32(SECOND), runtime.full_fp32(SECOND)  # as in two threads
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert tf32() == ["ieee"] * 3
    second.__exit__(None, None, None)
    assert tf32() == before
    with runtime.full_fp32(torch.device("cpu")):
        assert tf32() == before


def test_cudnn_is_tuned_only_inside_the_context(cards):
    before = torch.backends.cudnn.benchmark
    gpu, cpu = runtime.Runtime(SECOND, "fp32"), runtime.Runtime(torch.device("cpu"), "fp32")
    for where, enabled, expected in ((gpu, True, True), (gpu, False, before), (cpu, True, before)):
        with pytest.raises(KeyError), where.tuned(enabled):
            assert torch.backends.cudnn.benchmark == expected
            raise KeyError
        assert torch.backends.cudnn.benchmark == before


def test_nccl_waits_for_minutes_and_gloo_for_as_long_as_the_main_rank_works(cards, monkeypatch):
    """Tensors on GPUs use one process group; `on_main` and `gather` use the other."""
    store = mock.MagicMock()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    current = [3]  # the caller's device

    @contextmanager
    def device(number):
        before, current[0] = current[0], number
        try:
            yield
        finally:
            current[0] = before

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: current.__setitem__(0, number))
    rendezvous = mock.patch(
        "torch.distributed.rendezvous.rendezvous", return_value=iter([(store, 0, 2)])
    )
    peers = hosts.Peers("token", 0, [{"host": "alpha", "port": 0}] * 2, None)
    met = mock.patch.object(hosts, "meet", return_value=peers)
    with rendezvous as begun, met, mock.patch.multiple(
        torch.distributed, init_process_group=mock.DEFAULT, new_group=mock.DEFAULT,
        destroy_process_group=mock.DEFAULT, broadcast_object_list=mock.DEFAULT,
        all_gather=mock.DEFAULT,
    ) as called, mock.patch("torch.distributed.distributed_c10d.PrefixStore"):  # fmt: skip
        begun.return_value = iter([(store, 0, 2)])
        with runtime.connected():
            where = runtime.Runtime(torch.device("cuda", 0), "fp32", 0, 2)
            where.on_main(lambda: None)
            where.gather([1.0])
            assert current == [1]
        assert current == [3]
        group = called["new_group"].return_value
        assert called["broadcast_object_list"].call_args.kwargs["group"] is group
        assert called["all_gather"].call_args.kwargs["group"] is group
    assert called["init_process_group"].call_args.kwargs["timeout"] < timedelta(hours=1)
    given = called["new_group"].call_args.kwargs
    assert (given["backend"], given["timeout"]) == ("gloo", runtime.PATIENCE)
