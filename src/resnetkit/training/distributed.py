"""How the training forward pass runs: eager or compiled, in one process or in several.

The network itself, with its plain parameter names, is what is saved and evaluated. Only the
training step runs through the wrapper that `wrap_model` puts around it.
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
from ..text import pluralize
from .recipe import Recipe


def check_recipe(recipe: Recipe, runtime: Runtime) -> None:
    """Check that these processes can run the recipe.

    Raises:
        RecipeError: the batch cannot be split evenly, batch norm cannot be synchronized on this
            device, or there is no compiler.
    """
    batch_size = recipe.batch_size
    ranks = runtime.world_size
    if batch_size is not None and batch_size % ranks:
        below = batch_size // ranks * ranks
        above = -(-batch_size // ranks) * ranks
        fitting = f"{below} or {above}" if below else f"{above}"
        raise RecipeError(
            f"batch_size is the total over all {ranks} processes, and {batch_size} cannot be split "
            f"evenly. Use --batch-size {fitting}"
        )
    if recipe.sync_bn and runtime.device.type != "cuda":
        raise RecipeError(
            f"sync_bn: PyTorch synchronizes batch norm only on CUDA GPUs, and this run is on "
            f"{runtime.device}. Turn it off with --set sync_bn=false"
        )
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if recipe.compile and shutil.which(compiler) is None:
        raise RecipeError(
            f"compile: torch.compile needs a C++ compiler, and {compiler} is not on the PATH. "
            "Install one (Debian: apt install g++), set CXX to another compiler, or turn this off "
            "with --set compile=false"
        )


def check_image_count(count: int, runtime: Runtime) -> None:
    """Check that every rank gets at least one image from every batch.

    Raises:
        DataError: there are fewer training images than processes.
    """
    if count < runtime.world_size:
        raise DataError(
            f"{pluralize(count, 'training image')} cannot be split across {runtime.world_size} "
            f"processes. Start torchrun with --nproc-per-node {max(1, count)} or less"
        )


def convert_sync_bn(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Return the network, with batch norm synchronized across all ranks if the recipe asks for it.

    Parameters and their names stay the same.
    """
    if not recipe.sync_bn:
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call, no-any-return]


def revert_sync_bn(model: nn.Module) -> nn.Module:
    """Undo `convert_sync_bn` in place: batch norm sees only the batch of this process."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, nn.SyncBatchNorm):
            local = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
            local.__dict__.update(norm.__dict__)  # the same parameters, buffers and modes
            model.set_submodule(name, local)
    return model


def wrap_model(
    model: nn.Module, recipe: Recipe, runtime: Runtime, previous: nn.Module | None = None
) -> nn.Module:
    """Return the module that the training step calls. It shares the parameters of ``model``.

    Args:
        model: the network, or its first blocks.
        recipe: the resolved recipe.
        runtime: device and ranks.
        previous: the wrapper from the previous step. It is reused only if the same parameters are
            trained, because `DistributedDataParallel` waits for the gradients of the parameters
            that were trained when it was created.
    """
    if isinstance(previous, _DDP):
        if previous.trained == _trained_names(model):
            return previous
        previous = previous.module
    wraps_model = getattr(previous, "_orig_mod", previous) is model
    network = previous if previous is not None and wraps_model else _compile(model, recipe)
    if runtime.world_size == 1:
        return network
    return _wrap_in_ddp(model, network, recipe, runtime=runtime)


def compile_every_size(recipe: Recipe) -> AbstractContextManager[None]:
    """Return a context manager for training a compiled network at several image sizes.

    By default, PyTorch stops compiling after 8 sizes; this raises the limit to 64.
    """
    if not recipe.compile:
        return nullcontext()
    patched: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=64)
    return patched


def _compile(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Return the network, compiled separately for each image size if the recipe asks for it.

    A dynamic size would need fewer compilations. But then the compiled code, and with it the exact
    bits of the result, would depend on which sizes the run had already seen.
    """
    if not recipe.compile:
        return model
    compiled: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return compiled


class _DDP(DistributedDataParallel):
    """A `DistributedDataParallel` that remembers which parameters it was created for."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.trained = _trained_names(model)


def _trained_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _wrap_in_ddp(model: nn.Module, network: nn.Module, recipe: Recipe, *, runtime: Runtime) -> _DDP:
    """Return ``network``, which is ``model`` or its compiled form, wrapped in DDP."""
    # Running statistics do not affect training, and only the main rank's are saved and evaluated.
    # Sending them to the other ranks at every step would change nothing.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    device_ids = None if runtime.device.type == "cpu" else [runtime.device]
    settings: dict[str, Any] = {"device_ids": device_ids, option: False}
    ddp = _DDP(model, **settings)
    size = recipe.train_size(0)
    image = torch.zeros(1, recipe.channels or 3, size, size, device=runtime.device)
    _rebuild_buckets(ddp, image)
    ddp.module = network
    return ddp


def _rebuild_buckets(ddp: DistributedDataParallel, image: torch.Tensor) -> None:
    """Make DDP rebuild its gradient buckets now, with a backward pass that changes nothing else.

    DDP rebuilds them once, after the first backward pass, in the order in which gradients arrive.
    How a sum over three or more ranks is rounded depends on its position in a bucket. If the
    buckets were rebuilt after the first training step, a resumed run would not be bit-identical to
    an uninterrupted one.
    """
    with in_mode(ddp, training=False):  # running statistics do not change
        ddp(image).sum().backward()
    ddp.zero_grad()


def sync_gradients(network: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Return a context manager for the forward and backward passes of a micro-batch.

    DDP averages the gradients over the ranks after the last micro-batch of a batch. After the
    others, gradients only accumulate.
    """
    if is_last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


def launch_command(runtime: Runtime) -> str:
    """Return the command to put before ``train`` to start this many processes."""
    if runtime.world_size == 1:
        return "resnet"
    return f"torchrun --standalone --nproc-per-node {runtime.world_size} -m resnetkit"
