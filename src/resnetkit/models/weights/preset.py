"""The preprocessing that published weights expect: one picture -> one tensor of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL.Image import Image
    from torchvision.transforms import InterpolationMode


class ImageClassification(nn.Module):
    """Resize the shorter side, cut out the centre, scale to 0..1, normalise.

    Args:
        crop_size: side of the square that is cut out, in pixels.
        resize_size: length of the shorter side before that, in pixels.
        mean, std: of each channel, in the range 0..1; those of ImageNet by default.
        interpolation: torchvision's ``InterpolationMode``, or its value such as ``"bilinear"``.
        antialias: smooth before shrinking a tensor; PIL pictures always are.

    Shape:
        A PIL picture, or a tensor ``(..., C, H, W)`` of uint8 in 0..255 or floats in 0..1; answers
        float32 ``(..., 3, crop_size, crop_size)``. Where three channels are expected, grey pictures
        are repeated and transparent ones are laid on white; ValueError for other numbers of
        channels. Of 16 bits of grey the upper 8 count; a PIL picture of mode ``I`` does not say
        what is white, so that one with no number over 255 is taken for 8 bits.
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
        """The mode as torchvision's enum, which is imported only here: that takes a second."""
        from torchvision.transforms import InterpolationMode

        return InterpolationMode(self._interpolation)

    def forward(self, img: Image | Tensor) -> Tensor:
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
        """The steps in one sentence."""
        return (
            f"Takes a PIL picture or a tensor (..., C, H, W), resizes its shorter side to "
            f"{self.resize_size[0]} pixels ({self._interpolation}), cuts out the central "
            f"{self.crop_size[0]}x{self.crop_size[0]}, scales the values to 0..1, and normalises "
            f"them with mean={self.mean} and std={self.std}."
        )


def _to_rgb(image: Image | Tensor) -> Image | Tensor:
    if isinstance(image, Tensor):
        return _tensor_to_rgb(image)
    return image if getattr(image, "mode", "RGB") == "RGB" else _pil_to_rgb(image)


def _pil_to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode == "F":
        raise ValueError("the picture has mode F, whose range is unknown; convert it to L or RGB")
    if image.mode.startswith("I"):  # 16 bits of grey, of which RGB keeps the upper 8
        wide = image.convert("I")
        top: Any = wide.getextrema()[1]
        deep = image.mode != "I" or image.format == "PPM" or top > 255
        return (wide.point(lambda v: v / 256) if deep else wide).convert("L").convert("RGB")
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
            "a picture has the shape (..., C, H, W) with 3 channels, 1 (grey), 2 or 4 (transparent)"
            f"; got {tuple(image.shape)}"
        )
    colour, alpha = image[..., :-1, :, :], image[..., -1:, :, :]
    white = 1.0 if image.is_floating_point() else float(torch.iinfo(image.dtype).max)
    mixed = white - (white - colour.double()) * (alpha / white)
    mixed = mixed if image.is_floating_point() else mixed.round()
    return mixed.to(image.dtype).expand(*image.shape[:-3], 3, *image.shape[-2:])
