"""Memory layout, cores and CPU quota."""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library

import pytest
import torch
from torch import nn

from resnetkit import runtime
from resnetkit.models import cifar_resnet20, resnet18, resnet50, resnext50_32x4d
from resnetkit.runtime import memory_format

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda:1", "mps"))

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
CHECKED = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "85", "LD_PRELOAD": "libc_malloc_debug.so.0"}


def test_layout_on_a_cpu_avoids_the_kernel_that_writes_past_its_buffer():
    for model in (resnet18(width=8), resnet50(width=16), resnext50_32x4d(), cifar_resnet20()):
        assert memory_format(model, CPU) == torch.channels_last
        assert memory_format(model, CPU, wanted=False) == torch.contiguous_format
    for model in (resnet18(width=4), cifar_resnet20(width=4, shortcut="B")):
        assert memory_format(model, CPU) == torch.contiguous_format
    few_channels = nn.Sequential(nn.Conv2d(16, 16, 1, stride=2, groups=4))
    assert memory_format(few_channels, CPU) == torch.contiguous_format


def test_layout_on_devices(monkeypatch):
    asked, model = [], resnet18(width=8)
    for generation, precision, expected in (
        ((7, 5), "fp16", torch.channels_last),
        ((8, 0), "bf16", torch.channels_last),
        ((8, 0), "fp32", torch.contiguous_format),
        ((6, 1), "fp16", torch.contiguous_format),
    ):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda d, g=generation: asked.append(d) or g
        )
        assert memory_format(model, CUDA, precision) == expected
    assert set(asked) == {CUDA}
    assert memory_format(model, MPS) == torch.contiguous_format
    assert runtime.Runtime(MPS, "fp32").for_network(model).memory_format == torch.contiguous_format


TRAIN = """
import torch
from resnetkit import train
train({data!r}, out={out!r}, model="cifar_resnet20", epochs=1, batch_size=12, image_size=32,
      model_options={{"width": 4, "shortcut": "B"}}, workers=1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc's checking allocator")
def test_a_narrow_network_trains_without_writing_past_a_buffer(flat_folder, tmp_path):
    if find_library("c_malloc_debug") is None:
        pytest.skip("libc_malloc_debug.so is not installed")
    code = TRAIN.format(data=str(flat_folder), out=str(tmp_path / "run"))
    env = {**os.environ, **CHECKED, **AVX2}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "metrics.json").exists()
