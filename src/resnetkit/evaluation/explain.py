"""Grad-CAM: where in an image a model finds a class.

Selvaraju et al., arXiv:1610.02391. The feature maps of a layer are summed, each weighted by the
mean gradient of the class's logit over the map. Negative values, which are evidence against the
class, are set to 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import runtime
from ..data.color import to_rgb
from ..data.preprocessing import Preprocessing
from ..data.transforms import normalize, stack
from ..errors import ImageError, RecipeError, did_you_mean
from ..models.modes import in_mode
from ..models.weights import modelfile
from ..text import pluralize
from .metrics import probabilities
from .views import scale_preprocessing

SIDE = 256
"""Side of the returned images in pixels: a model's own input can be too small to look at."""


@dataclass(frozen=True)
class Explanation:
    """The Grad-CAM map of one image, or the reason why it could not be read.

    Args:
        source: the path; ``picture`` if the image was given as bytes.
        answer: the most probable class.
        probability: the probability of ``answer``, in [0, 1].
        target: the class that is explained.
        image: ``(V, V, 3)`` uint8, the crop of the image that the model sees.
        heat: ``(V, V)`` float32 in [0, 1]: how much each pixel supports ``target``.
        error: why the image could not be read, else None.
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
    """Return a heat map for each image: where the model finds a class.

    Args:
        model: any model that returns ``(N, classes)`` logits. It runs in eval mode; afterwards
            every module is back in its previous mode, and no parameter has a gradient from this
            call.
        images: ``(N, C, H, W)`` float, normalized, on the model's device.
        layer: name of a module whose output is ``(N, C, h, w)``, such as ``"layer3"`` or
            ``"layer4.1.conv2"``; by default the last stage. If the module runs several times in
            one forward pass, such as a block's ``relu``, its last output is used.
        target: the class index, or one per image; by default the most probable class.

    Returns:
        ``(N, H, W)`` float32 in [0, 1]. The maximum of each map is 1, or 0 if nothing supports
        the class.

    Raises:
        RecipeError: the layer or class does not exist, ``target`` is not one class index or one
            per image, or the layer has no feature maps.
    """
    name = default_layer(model) if layer is None else layer
    maps: list[Tensor] = []

    def keep_output(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise RecipeError(
                f"layer {name!r} has no feature maps (N, C, h, w); try {_top_level_names(model)}"
            )
        maps.append(output.detach().requires_grad_())  # earlier layers need no gradient
        return maps[-1].clone()  # an in-place ReLU may change the clone

    hook = _get_layer(model, name).register_forward_hook(keep_output)
    try:
        with in_mode(model, training=False), torch.enable_grad():
            logits = model(images)
            targets = _resolve_targets(logits, target)
            score = logits.gather(1, targets[:, None]).sum()
            (gradients,) = torch.autograd.grad(score, maps[-1])
    finally:
        hook.remove()
    weights = gradients.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
    heat = (weights * maps[-1].detach()).sum(1, keepdim=True).relu().float()
    heat = F.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    highest = heat.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, heat / highest.clamp(min=1e-30), 0.0)


def default_layer(model: nn.Module) -> str:
    """Return the name of the last stage, such as ``layer4``, whose maps come before the pooling."""
    return str(getattr(model, "stages", ["layer4"])[-1])


def explain(
    model_file: str | Path,
    images: Iterable[str | Path | bytes],
    *,
    layer: str | None = None,
    classes: str | Sequence[str] | None = None,
    image_size: int | None = None,
    side: int = SIDE,
    device: str = "auto",
) -> Iterator[Explanation]:
    """Explain images with Grad-CAM.

    Args:
        model_file: a model file.
        images: paths of image files, or the bytes of such files.
        layer: as in `grad_cam`.
        classes: the class to explain, or one per image; by default the model's answer.
        image_size: the input size in pixels; by default the model file's own.
        side: side of the returned images and heat maps in pixels.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ModelFileError: the file is not a valid model file.
        RecipeError: the model has no such layer or class, there are more images than classes, or
            the image size or device is not valid.
    """
    model, header = modelfile.read(model_file)
    modelfile.check_has_classes(header, model_file)
    if classes is not None:
        _check_classes({classes} if isinstance(classes, str) else set(classes), header.classes)
    torch_device = runtime.pick(device, "fp32").device
    with runtime.pytorch_defaults():
        layout = runtime.memory_format(model, torch_device)
        model = model.to(torch_device, memory_format=layout)  # type: ignore[call-overload]
    yield from explain_images(
        model, header, images, layer=layer, classes=classes, image_size=image_size, side=side
    )


def explain_images(
    model: nn.Module,
    header: modelfile.Header,
    images: Iterable[str | Path | bytes],
    *,
    layer: str | None = None,
    classes: str | Sequence[str] | None = None,
    image_size: int | None = None,
    side: int = SIDE,
) -> Iterator[Explanation]:
    """Explain images with a network that is already loaded; see `explain`.

    Args:
        model: the network, on the device to use.
        header: the header of its model file.
        images, layer, classes, image_size, side: as in `explain`.
    """
    torch_device = next(model.parameters()).device
    preprocessing = scale_preprocessing(header.preprocessing, image_size)
    for number, image in enumerate(images):
        class_name = _class_of(number, classes)
        source = Path("picture") if isinstance(image, bytes) else Path(image)
        contents = image if isinstance(image, bytes) else source
        try:
            with runtime.pytorch_defaults():
                crop = preprocessing.crop(preprocessing.pixels(contents))
            shown = shown_crop(contents, preprocessing, side)
        except ImageError as error:
            yield Explanation(source, error=str(error))
            continue
        with runtime.pytorch_defaults(), runtime.full_fp32(torch_device):
            inputs = _network_input(model, preprocessing, crop)
            with torch.inference_mode():
                logits = model(inputs).float().cpu()
        shares = probabilities(logits)[0]
        best = int(logits.argmax())
        target = best if class_name is None else header.classes.index(class_name)
        yield Explanation(
            source,
            answer=header.classes[best],
            probability=float(shares[best]),
            target=header.classes[target],
            image=shown,
            heat=heat_map(model, preprocessing, crop, target, side, layer),
        )


def shown_crop(source: Path | bytes, preprocessing: Preprocessing, side: int = SIDE) -> np.ndarray:
    """Return the crop of an image that a model sees, ``(side, side, 3)`` uint8.

    Raises:
        ImageError: the image cannot be read.
    """
    display = scale_preprocessing(preprocessing, side)
    with runtime.pytorch_defaults():
        return to_rgb(display.crop(display.pixels(source)).permute(1, 2, 0).numpy())


def heat_map(
    model: nn.Module,
    preprocessing: Preprocessing,
    crop: Tensor,
    target: int,
    side: int = SIDE,
    layer: str | None = None,
) -> np.ndarray:
    """Return the Grad-CAM map of a crop, ``(side, side)`` float32 in [0, 1].

    Args:
        model: the network, on the device to use.
        preprocessing: the model's preprocessing.
        crop: ``(C, S, S)`` uint8.
        target: the class index.
        side: the side of the map in pixels.
        layer: as in `grad_cam`.

    Raises:
        RecipeError: see `grad_cam`.
    """
    with runtime.pytorch_defaults(), runtime.full_fp32(next(model.parameters()).device):
        heat = grad_cam(model, _network_input(model, preprocessing, crop), layer, target)
        heat = F.interpolate(heat[None], (side, side), mode="bilinear", align_corners=False)
    heat_pixels: np.ndarray = heat[0, 0].cpu().numpy()
    return heat_pixels


def _network_input(model: nn.Module, preprocessing: Preprocessing, crop: Tensor) -> Tensor:
    """Return a normalized crop, ``(1, C, S, S)`` float32, on the device of the model."""
    device = next(model.parameters()).device
    inputs = normalize(stack([crop]).to(device), preprocessing)
    return inputs.contiguous(memory_format=runtime.memory_format(model, device))


def _class_of(number: int, classes: str | Sequence[str] | None) -> str | None:
    """Return the class to explain in image ``number`` (from 0); None means the model's answer."""
    if classes is None or isinstance(classes, str):
        return classes
    if number >= len(classes):
        raise RecipeError(
            f"There are more images than classes ({len(classes)}). Name one class for all images, "
            "or one for each"
        )
    return classes[number]


def _check_classes(names: set[str], classes: Sequence[str]) -> None:
    for name in sorted(names - set(classes)):
        question = did_you_mean(name, classes)
        more = ", ..." if len(classes) > 20 else ""
        known = ", ".join(classes[:20])
        raise RecipeError(f"The model has no class {name!r}. {question} It has {known}{more}")


def _get_layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise RecipeError(
            f"The model has no layer {name!r}; it has {_top_level_names(model)}"
        ) from None


def _top_level_names(model: nn.Module) -> str:
    return ", ".join(name for name, _ in model.named_children())


def _resolve_targets(logits: Tensor, target: int | Sequence[int] | Tensor | None) -> Tensor:
    """Return the class index of each image, ``(N,)`` int64."""
    count, classes = logits.shape
    if target is None:
        return logits.detach().argmax(1)
    targets = torch.as_tensor(target, device=logits.device)
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise RecipeError(f"target must be a class index or one per image; got {target}")
    if targets.shape not in ((), (count,)):
        raise RecipeError(
            f"target must be a class index or one for each of {pluralize(count, 'image')}; got "
            f"{target}"
        )
    if targets.min() < 0 or targets.max() >= classes:
        raise RecipeError(f"target must be 0 to {classes - 1}; got {target}")
    return targets.long().expand(count)
