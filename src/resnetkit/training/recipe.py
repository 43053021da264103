"""A recipe is data: one validated document that describes everything about a run.

Recipes are YAML files; the built-in ones are in ``recipes/``. `load_recipe` reads one,
`Recipe.with_settings` changes fields, and `defaults` fills in what depends on the data and the
machine.
"""

from __future__ import annotations

import os
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from ..data.preprocessing import STATISTICS, Preprocessing
from ..data.transforms import Augmentation
from ..errors import RecipeError, did_you_mean, sentences
from ..models import get_model_builder
from .settings import plain_message

DEFAULT_MODEL = "resnet18"
"""The network of a recipe that does not name one."""

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=1)]


class Recipe(BaseModel):
    """Everything about a run except the data, the run folder and the device.

    Fields that default to None are filled in before training, and a saved recipe holds their
    values.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    name: str = Field("fast", description="name of the recipe")
    # The network
    model: str | None = Field(
        None,
        description="see `resnet models`; default: resnet18, of width 16 or 32 on a CPU",
    )
    model_options: dict[str, Any] = Field(
        default_factory=dict, description="options of the ResNet class, such as stem: small"
    )
    weights: str = Field(
        "none",
        description="initial weights: none (random), auto, DEFAULT or another published name, a "
        "model file, .pth or .safetensors, https://... or hf://owner/name",
    )
    weights_prefix: str | None = Field(
        None,
        description="prefix of the parameter names of the network to use, if the weights file "
        "holds several networks",
    )
    weights_head: str | None = Field(
        None,
        description="name of the head, or none, if several layers in the weights file could be the "
        "head",
    )
    weights_sha256: str | None = Field(None, description="SHA-256 of the weights file that is used")
    freeze: tuple[str, ...] = Field(
        (), description="layers that are never trained, such as conv1, bn1, layer1"
    )
    head_share: Share = Field(
        0.0, description="share of the steps, at the start, that train only the head"
    )
    shallow_share: Share = Field(
        0.0,
        description="share of the steps, at the start, that skip the blocks that are initialized "
        "as the identity",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="factor on the learning rate from each layer to the one before it, which is "
        "farther from the head",
    )
    zero_init_residual: bool = Field(
        True, description="initialize every ResNet block as the identity, or as a projection"
    )
    # The images
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        None,
        description="side of the square images in evaluation, in pixels; by default taken from the "
        "training images",
    )
    resize_size: Annotated[int, Field(ge=16, le=2048)] | None = Field(
        None,
        description="shorter side before the center crop, in pixels; by default image_size",
    )
    decode_size: Annotated[int, Field(ge=16, le=2048)] | None = Field(
        None,
        description="shorter side that larger training images are decoded to, in pixels; by "
        "default resize_size",
    )
    train_sizes: tuple[Share, Share] = Field(
        (0.67, 0.85),
        description="image side in training at the start and from halfway on, as a share of "
        "image_size",
    )
    crop_scale: tuple[Share, Share] = Field(
        (0.5, 1.0), description="share of the area that a random crop covers"
    )
    crop_padding: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="cut random squares from the image with this many black pixels around it, "
        "instead of cropping by crop_scale",
    )
    scale_jitter: tuple[Factor, Factor] | None = Field(
        None,
        description="cut random squares from the image scaled to a shorter side between these "
        "multiples of the training size, instead of cropping by crop_scale",
    )
    flip: bool = Field(True, description="mirror half of the images, at random")
    trivial_augment: bool | Literal["few"] = Field(
        False,
        description="augment each image with TrivialAugment; few: only if there are fewer than "
        "1,000 training images",
    )
    erasing: Share = Field(0.0, description="share of the images in which a random box is erased")
    mixup: Annotated[float, Field(ge=0)] = Field(0.0, description="alpha of MixUp; 0 is off")
    cutmix: Annotated[float, Field(ge=0)] = Field(0.0, description="alpha of CutMix; 0 is off")
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled", description="balanced: every class appears equally often in an epoch"
    )
    repeats: Positive = Field(
        1,
        description="repeated augmentation: number of copies of each image in a batch, each "
        "augmented differently; batches and epochs then hold fewer distinct images",
    )
    channels: Literal[1, 3, 4] | None = Field(
        None,
        description="input channels of the network: 1 (grayscale), 3 (RGB) or 4 (RGB and alpha); "
        "by default as in the initial weights; with random weights, 1 if all images are grayscale, "
        "else 3",
    )
    value_range: tuple[float, float] | None = Field(
        None,
        description="values that become black and white in images with more than 8 bits; by "
        "default taken from the training images",
    )
    val_split: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.15,
        description="share of the images that is set aside for validation if there is no "
        "validation split; 0: train on all images, including those in a validation split, and keep "
        "the last epoch",
    )
    fold: tuple[Positive, Positive] | None = Field(
        None,
        description="[k, K]: validate on fold k of K, after pooling the training and validation "
        "splits; --folds K trains each fold in turn",
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="whether an image that cannot be read ends the run or is skipped"
    )
    # The optimization
    epochs: Positive | None = Field(
        None,
        description="by default between 16 and 300: enough to show 40,000 images on a CPU, "
        "80,000 on an Apple GPU, 160,000 on a CUDA GPU; from trained weights, 40% of these",
    )
    steps: Positive | None = Field(None, description="length of the run, instead of epochs")
    batch_size: Positive | None = Field(
        None,
        description="images per step, summed over all processes; by default 64 on an Apple GPU, "
        "128 on a CUDA GPU, and on a CPU the power of two from 16 to 128 with about 190 steps per "
        "epoch; at most the number of training images",
    )
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = Field(0.005, description="the peak learning rate")
    momentum: Share = Field(0.9, description="momentum of SGD")
    nesterov: bool = Field(True, description="use Nesterov momentum with SGD")
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    decay_norms: bool = Field(False, description="apply weight decay to norms and biases too")
    schedule: Literal["onecycle", "cosine", "steps", "constant"] = Field(
        "onecycle",
        description="onecycle and cosine: up to lr, then down half a cosine; steps: divided by ten "
        "at each milestone; constant: lr throughout",
    )
    warmup: Share = Field(
        0.25, description="share of the steps over which the learning rate rises linearly"
    )
    milestones: tuple[Share, ...] = Field(
        (),
        description="shares of the run at which the schedule `steps` divides the learning rate by "
        "ten",
    )
    label_smoothing: Share = 0.1
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: the rarer a class, the more its images count in the loss"
    )
    accumulate: Positive = Field(
        1, description="number of parts that a batch is split into; more parts save memory"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="limit on the total norm of the gradients"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="decay of the EMA weights, which are then evaluated and saved; 0 is off"
    )
    ema_every: Positive = Field(1, description="steps between updates of the EMA weights")
    patience: Positive | None = Field(
        None, description="stop after this many epochs without improvement"
    )
    # The machine
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="bf16 if the hardware supports it, else fp16 on a CUDA GPU, else fp32"
    )
    threads: Positive | None = Field(
        None,
        description="compute threads of each process; by default measured. A resumed run keeps "
        "its number, because a different one changes the last bits of the result",
    )
    channels_last: bool = Field(
        True, description="store feature maps as (N, H, W, C), which is faster"
    )
    compile: bool = Field(
        False, description="compile the training step with torch.compile; needs a C++ compiler"
    )
    sync_bn: bool = Field(
        False, description="compute batch norm across all processes; CUDA GPUs only"
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        30.0, description="seconds between saves of the state within an epoch"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("weights", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Enum | os.PathLike) else value

    @field_validator("model")
    @classmethod
    def _is_registered(cls, name: str | None) -> str | None:
        if name is not None:
            get_model_builder(name)
        return name

    @field_validator("crop_scale", "train_sizes", "scale_jitter")
    @classmethod
    def _is_ordered(cls, pair: tuple[float, float] | None) -> tuple[float, float] | None:
        if pair is not None and not 0 < pair[0] <= pair[1]:
            raise ValueError("expected two numbers above 0, the smaller first")
        return pair

    @field_validator("value_range")
    @classmethod
    def _is_a_range(cls, pair: tuple[float, float] | None) -> tuple[float, float] | None:
        if pair is not None and not pair[0] < pair[1]:
            raise ValueError("expected two numbers, the smaller first")
        return pair

    @field_validator("fold")
    @classmethod
    def _is_a_fold(
        cls, fold: tuple[int, int] | None, others: ValidationInfo
    ) -> tuple[int, int] | None:
        if fold is not None and not 1 <= fold[0] <= max(2, fold[1]) == fold[1]:
            raise ValueError("expected the number of a fold and the number of folds, as in [1, 5]")
        if fold is not None and others.data.get("val_split") == 0:
            raise ValueError("cannot be combined with val_split 0, which leaves no validation set")
        return fold

    @field_validator("patience")
    @classmethod
    def _has_validation(cls, patience: int | None, others: ValidationInfo) -> int | None:
        if patience is not None and others.data.get("val_split") == 0:
            raise ValueError("cannot be combined with val_split 0, which leaves no validation set")
        return patience

    @field_validator("scale_jitter")
    @classmethod
    def _is_the_only_crop(cls, value: Any, others: ValidationInfo) -> Any:
        if value is not None and others.data.get("crop_padding") is not None:
            raise ValueError("cannot be combined with crop_padding; set one of them to null")
        return value

    def with_settings(self, settings: dict[str, Any]) -> Recipe:
        """Return this recipe with new values for some fields.

        Setting epochs clears steps, and vice versa.

        Raises:
            RecipeError: a key is unknown (the message names the nearest), or a value is not valid.
        """
        for length, other in (("epochs", "steps"), ("steps", "epochs")):
            if settings.get(length) is not None and other not in settings:
                settings = {**settings, other: None}
        return _validate({**self.model_dump(), **settings})

    def preprocessing(self) -> Preprocessing:
        """Return the evaluation preset of a resolved recipe."""
        assert self.image_size is not None
        assert self.resize_size is not None
        mean, std = STATISTICS[self.channels or 3]
        return Preprocessing(
            self.resize_size, self.image_size, mean, std, value_range=self.value_range
        )

    def augmentation(self) -> Augmentation:
        """Return the training augmentation."""
        return Augmentation(
            crop_scale=self.crop_scale,
            crop_padding=self.crop_padding,
            scale_jitter=self.scale_jitter,
            flip=self.flip,
            trivial_augment=self.trivial_augment is True,
            erasing=self.erasing,
            mean=STATISTICS[self.channels or 3][0],
        )

    def micro_batch_size(self, processes: int) -> int:
        """Return how many images of a full batch a process computes at once."""
        assert self.batch_size is not None
        return -(-self.batch_size // (self.accumulate * processes))

    def train_size(self, epoch: int) -> int:
        """Return the side of the training images in an epoch (0-based), in pixels.

        It grows linearly until halfway through the run, in steps of 16 px (8 px if image_size is at
        most 64), which are multiples of most of the network's strides.
        """
        assert self.image_size is not None
        assert self.epochs is not None
        first, last = self.train_sizes
        share = first + (last - first) * min(1.0, 2 * epoch / self.epochs)
        step = 16 if self.image_size > 64 else 8
        return max(step, round(share * self.image_size / step) * step)

    def to_yaml(self) -> str:
        """Return the recipe as a YAML document."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def builtin_recipes() -> list[str]:
    """Return the names of the built-in recipes, sorted.

    >>> "classic" in builtin_recipes()
    True
    """
    folder = resources.files(__package__) / "recipes"
    return sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(recipe: str | Path) -> Recipe:
    """Read a built-in recipe by its name, or a YAML file.

    Raises:
        RecipeError: there is no such recipe, or it is not valid.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(
                f"Recipe file {path} does not exist (the current folder is {Path.cwd()})"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{recipe} is not UTF-8 text: {error}") from error
    elif str(recipe) in builtin_recipes():
        resource = resources.files(__package__) / "recipes" / f"{recipe}.yaml"
        text = resource.read_text(encoding="utf-8")
    else:
        raise RecipeError(
            sentences(
                f"Unknown recipe {str(recipe)!r}.",
                did_you_mean(str(recipe), builtin_recipes()),
                f"Built-in recipes: {', '.join(builtin_recipes())}; or pass a .yaml file",
            )
        )
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"{recipe} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{recipe} holds a {type(values).__name__}; expected `key: value` lines")
    return _validate(values)


def _validate(values: dict[str, Any]) -> Recipe:
    known = list(Recipe.model_fields)
    for key in values:
        if key not in known:
            raise RecipeError(
                sentences(
                    f"Unknown recipe key {key!r}.",
                    did_you_mean(str(key), known),
                    f"Known keys: {', '.join(known)}",
                )
            )
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            value = item["input"]
            problem = f"{'.'.join(map(str, item['loc']))}: {plain_message(item['msg'])}"
            names_value = isinstance(value, str) and repr(value) in problem
            problems.append(problem if names_value else f"{problem}, got {value!r}")
        raise RecipeError(f"Recipe: {'; '.join(problems)}") from None
