"""The preprocessing that published weights expect, from an image to a normalized tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL.Image import Image
    from torchvision.transforms import InterpolationMode


class ImageClassification(nn.Module):
    """Resize the shorter side, crop the center, scale to 0..1, normalize.

    If ``mean`` has three values, a gray image is repeated over three channels, and a transparent
    one is composited over white. Only the upper 8 bits of a 16-bit gray image are used. A PIL
    image of mode ``I`` does not say which value is white: if no value is over 255, it is read as
    8-bit.

    Args:
        crop_size: side of the cropped square, in pixels.
        resize_size: length of the shorter side before the crop, in pixels.
        mean, std: one value per channel, in the range 0..1; ImageNet's by default.
        interpolation: torchvision's ``InterpolationMode``, or its value such as ``"bilinear"``.
        antialias: smooth a tensor before shrinking it; PIL images are always smoothed.

    Shape:
        Input: a PIL image, or a tensor ``(..., C, H, W)`` of uint8 in 0..255 or floats in 0..1.
        Output: float32 ``(..., 3, crop_size, crop_size)``.

    Raises:
        ValueError: the image has an unsupported number of channels, or PIL mode ``F``.
    """

    def __init__(
        self,
        *,
        crop_size: int,
        resize_size: int = 256,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        interpolation: InterpolationMode | str = "bilinear",
        antialias: bool | None = True,
    ) -> None:
        super().__init__()
        self.crop_size = [crop_size]
        self.resize_size = [resize_size]
        self.mean = list(mean)
        self.std = list(std)
        self._interpolation = getattr(interpolation, "value", interpolation)
        self.antialias = antialias

    @property
    def interpolation(self) -> InterpolationMode:
        """The mode as torchvision's enum, imported here because the import takes a second."""
        from torchvision.transforms import InterpolationMode

        return InterpolationMode(self._interpolation)

    @interpolation.setter
    def interpolation(self, mode: InterpolationMode | str) -> None:
        self._interpolation = getattr(mode, "value", mode)

    def forward(self, img: Image | Tensor) -> Tensor:
        """Return the network's input for an image."""
        from torchvision.transforms import functional as F

        image: Any = _to_rgb(img) if len(self.mean) == 3 else img
        image = F.resize(image, self.resize_size, self.interpolation, antialias=self.antialias)
        image = F.center_crop(image, self.crop_size)
        if not isinstance(image, Tensor):
            image = F.pil_to_tensor(image)  # (C, H, W), uint8
        image = F.convert_image_dtype(image, torch.float)
        return F.normalize(image, mean=self.mean, std=self.std)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        names = ("crop_size", "resize_size", "mean", "std", "interpolation")
        lines = "".join(f"\n    {name}={getattr(self, name)}" for name in names)
        return f"{type(self).__name__}({lines}\n)"

    def describe(self) -> str:
        """Return the steps in one sentence."""
        return (
            f"Takes a PIL image or a tensor (..., C, H, W), resizes its shorter side to "
            f"{self.resize_size[0]} pixels ({self._interpolation}), crops the central "
            f"{self.crop_size[0]}x{self.crop_size[0]}, scales the values to 0..1, and normalizes "
            f"them with mean={self.mean} and std={self.std}."
        )


def _to_rgb(image: Image | Tensor) -> Image | Tensor:
    if isinstance(image, Tensor):
        return _tensor_to_rgb(image)
    return image if getattr(image, "mode", "RGB") == "RGB" else _pil_to_rgb(image)


def _pil_to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode == "F":
        raise ValueError("the image has mode F, whose range is unknown; convert it to L or RGB")
    if image.mode.startswith("I"):  # 16-bit gray; RGB keeps the upper 8 bits
        gray = image.convert("I")
        largest: Any = gray.getextrema()[1]
        if image.mode != "I" or image.format == "PPM" or largest > 255:
            gray = gray.point(lambda v: v / 256)
        return gray.convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _tensor_to_rgb(image: Tensor) -> Tensor:
    channels = image.shape[-3] if image.ndim >= 3 else 0
    if channels == 3:
        return image
    if channels == 1:
        return image.expand(*image.shape[:-3], 3, *image.shape[-2:])
    if channels not in (2, 4):
        raise ValueError(
            "expected an image (..., C, H, W) with 3 channels, 1 (gray), 2 or 4 (transparent); got "
            f"shape {tuple(image.shape)}"
        )
    color = image[..., :-1, :, :]
    alpha = image[..., -1:, :, :]
    white = 1.0 if image.is_floating_point() else float(torch.iinfo(image.dtype).max)
    mixed = white - (white - color.double()) * (alpha / white)
    mixed = mixed if image.is_floating_point() else mixed.round()
    return mixed.to(image.dtype).expand(*image.shape[:-3], 3, *image.shape[-2:])
