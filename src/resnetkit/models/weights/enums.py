"""The published weights, one line each, with the preprocessing they expect.

>>> weights = ResNet50_Weights.DEFAULT
>>> weights, weights.meta["_metrics"]["ImageNet-1K"]["acc@1"], weights.meta["categories"][0]
(ResNet50_Weights.IMAGENET1K_V2, 80.858, 'tench')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from ...data.imagenet import imagenet_classes
from ...errors import UnknownWeightsError, did_you_mean
from .download import fetch
from .preset import ImageClassification
from .reading import read_tensors

__all__ = [
    "ResNeXt50_32X4D_Weights",
    "ResNeXt101_32X8D_Weights",
    "ResNeXt101_64X4D_Weights",
    "ResNet18_Weights",
    "ResNet34_Weights",
    "ResNet50_Weights",
    "ResNet101_Weights",
    "ResNet152_Weights",
    "Starter_Weights",
    "Wide_ResNet50_2_Weights",
    "Wide_ResNet101_2_Weights",
]


@dataclass(eq=False)
class Weights:
    """One published file: its address, the preprocessing it expects, and facts about it.

    Args:
        url: ``https://`` address; the file name ends with the first 8 hex digits of its SHA-256.
        transforms: builds the preprocessing when called without arguments.
        meta: ``categories`` (class names in the order of the logits), ``num_params``, ``min_size``
            (of the input, in pixels), ``recipe`` (address), ``_metrics`` (accuracy in percent),
            ``_ops`` (1e9 multiply-adds at 224 px), ``_file_size`` (MiB), ``_docs``.
    """

    url: str
    transforms: Callable[..., nn.Module]
    meta: dict[str, Any]

    def __eq__(self, other: object) -> bool:
        # Enum compares members by value, but equal partials do not compare equal.
        if not isinstance(other, Weights):
            return NotImplemented
        return (self.url, self.meta, _comparable(self.transforms)) == (
            other.url,
            other.meta,
            _comparable(other.transforms),
        )


def _comparable(function: Any) -> Any:
    """Return a value that is equal for equal partials."""
    if isinstance(function, partial):
        return function.func, function.args, function.keywords
    return function


class WeightsEnum(Enum):
    """Base of the weight enums: each member's value is a `Weights`."""

    @classmethod
    def verify(cls, obj: Any) -> Self | None:
        """Return the member that ``obj`` is or names, or None if ``obj`` is None.

        Args:
            obj: a member; its name (``"IMAGENET1K_V1"``), with or without the enum's name and a dot
                before it; or None.

        Raises:
            UnknownWeightsError: no member has that name; this is also a KeyError.
            TypeError: ``obj`` is something else, such as another network's weights.
        """
        if obj is None or isinstance(obj, cls):
            return obj
        if not isinstance(obj, str):
            raise TypeError(f"weights must be a member of {cls.__name__} or its name; got {obj!r}")
        name = obj.removeprefix(f"{cls.__name__}.")
        if name not in cls.__members__:
            question = did_you_mean(name.upper(), cls.__members__)
            names = ", ".join(cls.__members__)
            what = f"{cls.__name__} has no member {name!r}"
            hint = f" {question}" if question else ""
            raise UnknownWeightsError(f"{what}.{hint} Its members are {names}.")
        return cls[name]

    def file(
        self,
        folder: Path | None = None,
        name: str | None = None,
        *,
        progress: bool = True,
        check_hash: bool = True,
        brief: bool = False,
    ) -> Path:
        """Return the path to the local file, downloaded on the first call; see `fetch`.

        Args:
            folder: the folder to keep it in; by default PyTorch's cache.
            name: the name to keep it under; by default the last part of the address.
            progress: show a bar on standard error.
            check_hash: compare the file with the SHA-256 prefix in its name.
            brief: give up quickly if the server does not answer.

        Raises:
            DownloadError: it could not be fetched.
        """
        return fetch(self.url, folder, name, progress=progress, check_hash=check_hash, brief=brief)

    def get_state_dict(
        self,
        model_dir: str | None = None,
        map_location: Any = "cpu",
        progress: bool = True,
        check_hash: bool = True,
        file_name: str | None = None,
    ) -> dict[str, Tensor]:
        """Return the tensors by name, downloaded on the first call; see `fetch`.

        Args:
            model_dir: the folder to keep the file in; by default PyTorch's cache.
            map_location: the device to load to, as in ``torch.load``.
            progress: show a bar on standard error.
            check_hash: compare the file with the SHA-256 prefix in its name.
            file_name: the name to keep the file under; by default the last part of the address.

        Raises:
            DownloadError: it could not be fetched.
            WeightsError: the file is damaged.
        """
        folder = None if model_dir is None else Path(model_dir)
        path = self.file(folder, file_name, progress=progress, check_hash=check_hash)
        return read_tensors(path, map_location).tensors

    @property
    def url(self) -> str:
        """The address of the file."""
        return self.value.url  # type: ignore[no-any-return]

    @property
    def transforms(self) -> Callable[..., nn.Module]:
        """A function that builds the preprocessing."""
        return self.value.transforms  # type: ignore[no-any-return]

    @property
    def meta(self) -> dict[str, Any]:
        """Facts about the weights; see `Weights`."""
        return self.value.meta  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (type(self), self.name)  # by name: pickle, copy and deepcopy keep identity


def _read_lines(name: str) -> list[str]:
    return (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()


_CATEGORIES = imagenet_classes()
_VISION = "https://github.com/pytorch/vision/"
_PAPER = _VISION + "tree/main/references/classification#resnet"
_RX = _VISION + "tree/main/references/classification#resnext"
_WR = _VISION + "pull/912#issue-445437439"
_X64 = _VISION + "pull/5935"
_NEW = _VISION + "issues/3995#new-recipe"
_FIX = _VISION + "issues/3995#new-recipe-with-fixres"
_NEW_50 = _VISION + "issues/3995#issuecomment-1013906621"


def _w(
    name: str,
    num_params: int,
    gmacs: float,
    acc1: float,
    acc5: float,
    mebibytes: float,
    recipe: str,
) -> Weights:
    """Return the `Weights` of one row of the table below."""
    if recipe in (_PAPER, _RX, _WR):  # 90 epochs, tested as in the paper
        resize_size = 256
        docs = "Trained for 90 epochs with a recipe close to the paper's."
    else:  # 232 px suits networks that were trained on crops of 176 px
        resize_size = 232
        docs = "Trained longer, with label smoothing, mixup and weight averaging."
    meta = {
        "min_size": (1, 1),
        "categories": _CATEGORIES,
        "num_params": num_params,
        "recipe": recipe,
        "_metrics": {"ImageNet-1K": {"acc@1": acc1, "acc@5": acc5}},
        "_ops": gmacs,
        "_file_size": mebibytes,
        "_docs": docs,
    }
    preset = partial(ImageClassification, crop_size=224, resize_size=resize_size)
    return Weights(f"https://download.pytorch.org/models/{name}.pth", preset, meta)


# fmt: off
# Columns: file, parameters, 1e9 multiply-adds, top-1 and top-5 accuracy in percent, MiB, recipe.
class ResNet18_Weights(WeightsEnum):
    """The published weights of ResNet-18."""

    IMAGENET1K_V1 = _w("resnet18-f37072fd", 11689512, 1.814, 69.758, 89.078, 44.661, _PAPER)
    DEFAULT = IMAGENET1K_V1


class ResNet34_Weights(WeightsEnum):
    """The published weights of ResNet-34."""

    IMAGENET1K_V1 = _w("resnet34-b627a593", 21797672, 3.664, 73.314, 91.42, 83.275, _PAPER)
    DEFAULT = IMAGENET1K_V1


class ResNet50_Weights(WeightsEnum):
    """The published weights of ResNet-50."""

    IMAGENET1K_V1 = _w("resnet50-0676ba61", 25557032, 4.089, 76.13, 92.862, 97.781, _PAPER)
    IMAGENET1K_V2 = _w("resnet50-11ad3fa6", 25557032, 4.089, 80.858, 95.434, 97.79, _NEW_50)
    DEFAULT = IMAGENET1K_V2


class ResNet101_Weights(WeightsEnum):
    """The published weights of ResNet-101."""

    IMAGENET1K_V1 = _w("resnet101-63fe2227", 44549160, 7.801, 77.374, 93.546, 170.511, _PAPER)
    IMAGENET1K_V2 = _w("resnet101-cd907fc2", 44549160, 7.801, 81.886, 95.78, 170.53, _NEW)
    DEFAULT = IMAGENET1K_V2


class ResNet152_Weights(WeightsEnum):
    """The published weights of ResNet-152."""

    IMAGENET1K_V1 = _w("resnet152-394f9c45", 60192808, 11.514, 78.312, 94.046, 230.434, _PAPER)
    IMAGENET1K_V2 = _w("resnet152-f82ba261", 60192808, 11.514, 82.284, 96.002, 230.474, _NEW)
    DEFAULT = IMAGENET1K_V2


class ResNeXt50_32X4D_Weights(WeightsEnum):
    """The published weights of ResNeXt-50 32x4d."""

    IMAGENET1K_V1 = _w("resnext50_32x4d-7cdf4587", 25028904, 4.23, 77.618, 93.698, 95.789, _RX)
    IMAGENET1K_V2 = _w("resnext50_32x4d-1a0047aa", 25028904, 4.23, 81.198, 95.34, 95.833, _NEW)
    DEFAULT = IMAGENET1K_V2


class ResNeXt101_32X8D_Weights(WeightsEnum):
    """The published weights of ResNeXt-101 32x8d."""

    IMAGENET1K_V1 = _w("resnext101_32x8d-8ba56ff5", 88791336, 16.414, 79.312, 94.526, 339.586, _RX)
    IMAGENET1K_V2 = _w("resnext101_32x8d-110c445d", 88791336, 16.414, 82.834, 96.228, 339.673, _FIX)
    DEFAULT = IMAGENET1K_V2


class ResNeXt101_64X4D_Weights(WeightsEnum):
    """The published weights of ResNeXt-101 64x4d."""

    IMAGENET1K_V1 = _w("resnext101_64x4d-173b62eb", 83455272, 15.46, 83.246, 96.454, 319.318, _X64)
    DEFAULT = IMAGENET1K_V1


class Wide_ResNet50_2_Weights(WeightsEnum):
    """The published weights of Wide ResNet-50-2."""

    IMAGENET1K_V1 = _w("wide_resnet50_2-95faca4d", 68883240, 11.398, 78.468, 94.086, 131.82, _WR)
    IMAGENET1K_V2 = _w("wide_resnet50_2-9ba9bcbe", 68883240, 11.398, 81.602, 95.758, 263.124, _FIX)
    DEFAULT = IMAGENET1K_V2


class Wide_ResNet101_2_Weights(WeightsEnum):
    """The published weights of Wide ResNet-101-2."""

    IMAGENET1K_V1 = _w("wide_resnet101_2-32ee1156", 126886696, 22.753, 78.848, 94.284, 242.896, _WR)
    IMAGENET1K_V2 = _w("wide_resnet101_2-d733dc28", 126886696, 22.753, 82.51, 96.02, 484.747, _NEW)
    DEFAULT = IMAGENET1K_V2
# fmt: on


class Starter_Weights(WeightsEnum):
    """Small weights that ship with this package; ``starter/README.md`` is their model card.

    `get_state_dict` and `file` download nothing, and ignore the arguments for downloads.
    """

    TINY_IMAGENET = Weights(
        "resnet18_starter-bf82aac6.safetensors",
        partial(ImageClassification, crop_size=112, resize_size=112),
        {
            "min_size": (1, 1),
            "categories": _read_lines("starter/tiny_imagenet_classes.txt"),
            "num_params": 2_850_280,
            "recipe": "starter",
            "_metrics": {"Tiny-ImageNet": {"acc@1": 50.84, "acc@5": 75.3}},
            "_ops": 0.483,
            "_file_size": 5.479,
            "_docs": "Trained on the 100,000 64 px images of Tiny-ImageNet.",
        },
    )
    DEFAULT = TINY_IMAGENET

    def file(self, *_: Any, **__: Any) -> Path:
        """Return the path to the file in the package."""
        return Path(__file__).parent / "starter" / self.url
