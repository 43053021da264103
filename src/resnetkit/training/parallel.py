"""How the training forward runs: compiled or not, in one process or in several.

The network itself stays what it is, with its plain names: it is what is saved, averaged, evaluated.
Only the training step runs through what `wrap` puts around it.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import DataError, RecipeError
from ..models.modes import in_mode
from ..runtime import Runtime
from .recipe import Recipe


def check(recipe: Recipe, runtime: Runtime) -> None:
    """Make sure that the recipe can be run by these processes.

    Raises:
        RecipeError: the batch cannot be shared evenly, batch norm cannot be synchronised on this
            device, or there is no compiler.
    """
    size, ranks = recipe.batch_size, runtime.world_size
    if size is not None and size % ranks:
        below, above = size // ranks * ranks, -(-size // ranks) * ranks
        fitting = f"{below} or {above}" if below else f"{above}"
        raise RecipeError(
            f"batch_size is that of all {ranks} processes together, and {size} cannot be shared "
            f"evenly: {fitting} would do (--batch-size)"
        )
    if recipe.sync_bn and runtime.device.type != "cuda":
        raise RecipeError(
            f"sync_bn: PyTorch synchronises batch norm only on CUDA GPUs, and this run is on "
            f"{runtime.device}. Leave it off: --set sync_bn=false"
        )
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if recipe.compile and shutil.which(compiler) is None:
        raise RecipeError(
            f"compile: torch.compile needs a C++ compiler, and {compiler} is not on the PATH. "
            "Install one (Debian: apt install g++), name another one in CXX, or leave it off: "
            "--set compile=false"
        )


def check_images(images: int, runtime: Runtime) -> None:
    """Make sure that every rank has a picture in every batch.

    Raises:
        DataError: there are fewer training pictures than processes.
    """
    if images < runtime.world_size:
        raise DataError(
            f"{images} training picture(s) cannot be shared by {runtime.world_size} processes: "
            f"start torchrun with --nproc-per-node {max(1, images)} or less"
        )


def synchronized(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The network whose batch norms see the batch of all ranks, where the recipe wants it; same
    parameters, same names."""
    if not recipe.sync_bn:
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call, no-any-return]


def local_norms(model: nn.Module) -> nn.Module:
    """Undo `synchronized`: the batch norms see the batch of this process, and exchange nothing."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, nn.SyncBatchNorm):
            local = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
            local.__dict__.update(norm.__dict__)  # the same parameters, buffers and modes
            model.set_submodule(name, local)
    return model


def wrap(
    model: nn.Module, recipe: Recipe, runtime: Runtime, before: nn.Module | None = None
) -> nn.Module:
    """What the training step runs forward; shares the parameters of ``model``, which is the network
    or its first blocks.

    ``before`` is what the step before ran, and stays while the same parameters are trained:
    `DistributedDataParallel` waits for the gradients of those that were trained when it was made.
    """
    if isinstance(before, _Spread):
        if before.trained == _trained(model):
            return before
        before = before.module
    same = getattr(before, "_orig_mod", before) is model
    network = before if before is not None and same else _compiled(model, recipe)
    return network if runtime.world_size == 1 else _spread(model, network, recipe, runtime)


def compiling(recipe: Recipe) -> AbstractContextManager[None]:
    """Return the context in which a compiled network is trained: by default PyTorch stops compiling
    after 8 picture sizes."""
    if not recipe.compile:
        return nullcontext()
    patched: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=64)
    return patched


def _compiled(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Each picture size is compiled for itself. A size left open would be one compilation less, but
    then the code of a run, and so its bits, would depend on the sizes that it met before."""
    if not recipe.compile:
        return model
    compiled: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return compiled


class _Spread(DistributedDataParallel):
    """Remembers the names of the parameters that it was made for."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.trained = _trained(model)


def _trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _spread(model: nn.Module, network: nn.Module, recipe: Recipe, runtime: Runtime) -> _Spread:
    # Running means and variances do not enter the training forward, and those of the first rank are
    # saved and evaluated: sending them to the others at every step would change nothing.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    device = None if runtime.device.type == "cpu" else [runtime.device]
    settings: dict[str, Any] = {"device_ids": device, name: False}
    spread = _Spread(model, **settings)
    _settle(spread, recipe.train_size(0), runtime)
    spread.module = network
    return spread


def _settle(spread: DistributedDataParallel, size: int, runtime: Runtime) -> None:
    """Let PyTorch sort its buckets of gradients now, by a backward that changes nothing else.

    It sorts them once, after the first backward, by the order in which gradients came. How a sum
    over three or more ranks is rounded depends on the place in a bucket: sorted after the first
    step of training, a resumed run would have other bits than an unbroken one.
    """
    with in_mode(spread, training=False):  # the running means stay as they are
        spread(torch.zeros(1, 3, size, size, device=runtime.device)).sum().backward()
    spread.zero_grad()


def exchange(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around the forward and backward of a part of a batch: gradients are averaged over the ranks
    after the ``last`` one, and only add up before."""
    if last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


def command(runtime: Runtime) -> str:
    """What a person types, before ``train``, to start as many processes on this machine."""
    if runtime.world_size == 1:
        return "resnet"
    return f"torchrun --standalone --nproc-per-node {runtime.world_size} -m resnetkit"
