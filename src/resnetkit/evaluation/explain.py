"""Grad-CAM: where in a picture a network found what it names.

Selvaraju et al., arXiv:1610.02391. The maps of a layer are added up, each weighted with the mean
slope of the class's logit over it; what speaks against the class is cut off.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import runtime
from ..data.color import to_rgb
from ..data.transforms import normalize, stack
from ..errors import ImageError, RecipeError
from ..models.modes import in_mode
from ..models.weights import modelfile
from .metrics import probabilities
from .views import at_size

SHOWN = 256  # pixels: a smaller view is hard to look at


@dataclass(frozen=True)
class Explanation:
    """What was found in one picture; where it could not be read, ``error`` says why.

    Args:
        source: the path; of bytes ``picture``.
        answer, probability: what the network says.
        target: the class that is explained.
        picture: ``(V, V, 3)`` uint8, the part of the picture that the network sees.
        heat: ``(V, V)`` float32 in [0, 1]: how much each place speaks for ``target``.
    """

    source: Path
    answer: str = ""
    probability: float = 0.0
    target: str = ""
    image: np.ndarray | None = None
    heat: np.ndarray | None = None
    error: str | None = None


def grad_cam(
    model: nn.Module,
    images: Tensor,
    layer: str | None = None,
    target: int | Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Where in the pictures the network finds a class.

    Args:
        model: any network that gives ``(N, classes)`` logits; it runs in eval mode, and each of
            its modules is left in the mode that it came in, without gradients.
        images: ``(N, C, H, W)`` float, normalised, on the model's device.
        layer: name of a module whose output is ``(N, C, h, w)``, such as ``"layer3"`` or
            ``"layer4.1.conv2"``; by default the last stage. Of a module that runs several times in
            one pass, such as a block's ``relu``, its last output is taken.
        target: the class, or one for each picture; by default the most probable one.

    Returns:
        ``(N, H, W)`` float32 in [0, 1]; the highest place of each is 1, unless nothing speaks for
        the class: then it is all 0.

    Raises:
        RecipeError: no such layer or class, or a layer without maps.
    """
    name = default_layer(model) if layer is None else layer
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise RecipeError(f"layer {name!r} gives no maps (N, C, h, w); try {_some(model)}")
        maps.append(output.detach().requires_grad_())  # what lies before it needs no gradient
        return maps[-1].clone()  # which a ReLU in place may change

    hook = _find(model, name).register_forward_hook(keep)
    try:
        with in_mode(model, training=False), torch.enable_grad():
            logits = model(images)
            chosen = _targets(logits, target)
            score = logits.gather(1, chosen[:, None]).sum()
            (slopes,) = torch.autograd.grad(score, maps[-1])
    finally:
        hook.remove()
    weights = slopes.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
    heat = (weights * maps[-1].detach()).sum(1, keepdim=True).relu().float()
    heat = F.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    highest = heat.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, heat / highest.clamp(min=1e-30), 0.0)


def default_layer(model: nn.Module) -> str:
    """The last stage, such as ``layer4``: the last maps before the average over all places."""
    return str(getattr(model, "stages", ["layer4"])[-1])


def explain(
    model_file: str | Path,
    images: Iterable[str | Path | bytes],
    *,
    layer: str | None = None,
    classes: str | Sequence[str] | None = None,
    image_size: int | None = None,
    shown: int = SHOWN,
    device: str = "auto",
) -> Iterator[Explanation]:
    """Grad-CAM for pictures, by a model file.

    Args:
        pictures: files, or the bytes of some.
        layer: as in `grad_cam`.
        classes: the class to explain, or one for each picture; by default the network's answer.
        image_size: another picture size than the model file's, in pixels.
        shown: side of the pictures that come back, in pixels.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ModelFileError: the file is no model file.
        RecipeError: it has no such layer or class.
    """
    network, header = modelfile.read(model_file)
    modelfile.check_has_classes(header, model_file)
    if classes is not None:
        _check_names({classes} if isinstance(classes, str) else set(classes), header.classes)
    where = runtime.pick(device, "fp32").device
    layout = runtime.memory_format(network, where)
    with runtime.pytorch_defaults():
        network = network.to(where, memory_format=layout)  # type: ignore[call-overload]
    preprocessing = at_size(header.preprocessing, image_size)
    wanted = repeat(classes) if classes is None or isinstance(classes, str) else iter(classes)
    large = at_size(preprocessing, shown)
    for given, name in zip(images, wanted, strict=False):
        file = Path("picture") if isinstance(given, bytes) else Path(given)
        contents = given if isinstance(given, bytes) else file
        try:
            with runtime.pytorch_defaults():
                seen = preprocessing.crop(preprocessing.pixels(contents))
                image = to_rgb(large.crop(large.pixels(contents)).permute(1, 2, 0).numpy())
        except ImageError as error:
            yield Explanation(file, error=str(error))
            continue
        with runtime.pytorch_defaults(), runtime.full_fp32(where):
            inputs = normalize(stack([seen]).to(where), preprocessing)
            inputs = inputs.contiguous(memory_format=layout)
            with torch.inference_mode():
                shares = probabilities(network(inputs).float().cpu())[0]
            best = int(shares.argmax())
            target = best if name is None else header.classes.index(name)
            heat = grad_cam(network, inputs, layer, target)
            heat = F.interpolate(heat[None], (shown, shown), mode="bilinear", align_corners=False)
        yield Explanation(
            file,
            header.classes[best],
            float(shares[best]),
            header.classes[target],
            image,
            heat[0, 0].cpu().numpy(),
        )


def _check_names(names: set[str], classes: Sequence[str]) -> None:
    for name in sorted(names - set(classes)):
        close = difflib.get_close_matches(name, classes, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        more = ", ..." if len(classes) > 20 else ""
        known = ", ".join(classes[:20])
        raise RecipeError(f"The network has no class {name!r}.{hint} It has {known}{more}")


def _find(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise RecipeError(f"there is no layer {name!r}; it has {_some(model)}") from None


def _some(model: nn.Module) -> str:
    return ", ".join(name for name, _ in model.named_children())


def _targets(logits: Tensor, target: int | Sequence[int] | Tensor | None) -> Tensor:
    """``(N,)`` int64."""
    count, classes = logits.shape
    if target is None:
        return logits.detach().argmax(1)
    chosen = torch.as_tensor(target, device=logits.device).expand(count)
    if chosen.min() < 0 or chosen.max() >= classes:
        raise RecipeError(f"target is 0 to {classes - 1}; got {target}")
    return chosen
