"""A recipe is data: one validated document says everything about a run.

Recipes are YAML files; the built-in ones lie in ``recipes/``. `load` reads one, `with_settings`
changes fields of it, `plan` fills in what is left to be found from the data and the machine.
"""

from __future__ import annotations

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

from ..data.transforms import STATISTICS, Augmentation, Preprocessing
from ..errors import RecipeError
from ..models import get_model_builder
from .settings import did_you_mean, plain

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=1)]


class Recipe(BaseModel):
    """Everything about a run but the data, the place of its results and the machine.

    Fields that default to None are found by `plan`; a saved recipe holds what was found.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    name: str = "fast"
    # The network
    model: str | None = Field(
        None,
        description="see `resnet models`; by default resnet18, on a CPU with width 16 or 32",
    )
    model_options: dict[str, Any] = Field(
        default_factory=dict, description="options of the ResNet class, such as stem: small"
    )
    weights: str = Field(
        "none",
        description="to begin with: none (random), auto, DEFAULT or another published name, a "
        "model file, .pth or .safetensors, https://... or hf://owner/name",
    )
    weights_prefix: str | None = Field(
        None, description="which network of that file, if it has several: what its names begin with"
    )
    weights_head: str | None = Field(
        None, description="which layer of that file is the head, if several could be; or none"
    )
    weights_sha256: str | None = Field(None, description="of the file that was taken")
    freeze: tuple[str, ...] = Field(
        (), description="parts that are never trained, such as conv1, bn1, layer1"
    )
    head_share: Share = Field(
        0.0, description="share of the steps, at the beginning, in which only the head is trained"
    )
    shallow_share: Share = Field(
        0.0,
        description="share of the steps, at the beginning, in which the blocks that zero-init "
        "makes the identity are left out",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor on the learning rate from each part to the one below it"
    )
    zero_init_residual: bool = Field(
        True, description="start a ResNet with every block an identity, or a projection"
    )
    # The pictures
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        None, description="side of the square the network is evaluated on, in pixels"
    )
    resize_size: Annotated[int, Field(ge=16, le=2048)] | None = Field(
        None, description="shorter side before the centre is cut; by default image_size"
    )
    decode_size: Annotated[int, Field(ge=16, le=2048)] | None = Field(
        None,
        description="shorter side that larger training pictures are decoded to; by default "
        "resize_size",
    )
    train_sizes: tuple[Share, Share] = Field(
        (0.67, 0.85),
        description="side in training at the start and from half-way on, over image_size",
    )
    crop_scale: tuple[Share, Share] = Field(
        (0.5, 1.0), description="share of the area that a random crop takes"
    )
    crop_padding: Annotated[int, Field(ge=0)] | None = Field(
        None, description="cut random squares of the picture with so many black pixels around it"
    )
    scale_jitter: tuple[Factor, Factor] | None = Field(
        None,
        description="cut random squares of the picture scaled to a shorter side between these, "
        "over the training size",
    )
    flip: bool = Field(True, description="mirror every other picture")
    trivial_augment: bool = Field(False, description="change each picture by TrivialAugment")
    erasing: Share = Field(0.0, description="share of the pictures of which a random box is erased")
    mixup: Annotated[float, Field(ge=0)] = Field(0.0, description="alpha of MixUp; 0 is off")
    cutmix: Annotated[float, Field(ge=0)] = Field(0.0, description="alpha of CutMix; 0 is off")
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled", description="balanced: an epoch shows every class equally often"
    )
    repeats: Positive = Field(
        1, description="copies of a picture in a batch, each augmented anew; fewer pictures each"
    )
    channels: Literal[1, 3, 4] | None = Field(
        None,
        description="of the network's input: 1 (grey), 3 (RGB) or 4 (RGB and transparency); by "
        "default those of the weights to begin with, or else 3",
    )
    value_range: tuple[float, float] | None = Field(
        None,
        description="numbers that become black and white in images of 16 or 32 bits of grey; by "
        "default found from the training images",
    )
    val_split: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="share of a flat folder that becomes the validation part"
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="what an unreadable picture does to the run"
    )
    # The optimisation
    epochs: Positive | None = Field(
        None,
        description="by default between 16 and 300: as many as show 40,000 images on a CPU, "
        "80,000 on an Apple GPU, 160,000 on a CUDA GPU",
    )
    steps: Positive | None = Field(None, description="length of the run, in place of epochs")
    batch_size: Positive | None = Field(
        None,
        description="images a step, of all processes together; by default 16 on a CPU, 64 on an "
        "Apple GPU, 128 on a CUDA GPU, and no more than there are to train on",
    )
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = Field(0.005, description="the greatest learning rate")
    momentum: Share = Field(0.9, description="of SGD")
    nesterov: bool = Field(True, description="correct SGD's momentum as Nesterov does")
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    decay_norms: bool = Field(False, description="decay norms and biases too")
    schedule: Literal["onecycle", "cosine", "steps", "constant"] = Field(
        "onecycle",
        description="onecycle and cosine: up to lr, then down half a cosine; steps: a tenth at "
        "each milestone; constant: lr throughout",
    )
    warmup: Share = Field(0.25, description="share of the steps in which the rate grows linearly")
    milestones: tuple[Share, ...] = Field(
        (), description="shares of the run at which the schedule `steps` divides the rate by ten"
    )
    label_smoothing: Share = 0.1
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: an error counts the more, the rarer its class is"
    )
    accumulate: Positive = Field(
        1, description="parts in which a batch is computed, where memory is short"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="greatest norm of the gradient of all weights together"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="decay of averaged weights, which are evaluated and kept; 0 is off"
    )
    ema_every: Positive = Field(1, description="steps between two updates of averaged weights")
    patience: Positive | None = Field(
        None, description="stop after so many epochs without a better one"
    )
    # The machine
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="bf16 if the hardware multiplies it, else fp16 on a CUDA GPU, else fp32"
    )
    threads: Positive | None = Field(
        None,
        description="compute threads of each process; by default measured, and then kept by every "
        "resume, since another number gives other bits",
    )
    channels_last: bool = Field(True, description="store maps as (N, H, W, C): faster")
    compile: bool = Field(
        False, description="compile the training step with torch.compile; needs a C++ compiler"
    )
    sync_bn: bool = Field(
        False, description="batch norm over the batch of all processes; on CUDA GPUs"
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        30.0, description="between two saves of the state within an epoch"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

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
            raise ValueError("expected two numbers above 0, the smaller one first")
        return pair

    @field_validator("value_range")
    @classmethod
    def _is_a_range(cls, pair: tuple[float, float] | None) -> tuple[float, float] | None:
        if pair is not None and not pair[0] < pair[1]:
            raise ValueError("expected two numbers, the smaller one first")
        return pair

    @field_validator("scale_jitter")
    @classmethod
    def _is_the_only_crop(cls, value: Any, others: ValidationInfo) -> Any:
        if value is not None and others.data.get("crop_padding") is not None:
            raise ValueError("goes not together with crop_padding; set one of them to null")
        return value

    def with_settings(self, settings: dict[str, Any]) -> Recipe:
        """This recipe with other values for some fields. One of epochs and steps that is set
        takes the place of the other.

        Raises:
            RecipeError: an unknown key (the nearest is named) or a value that does not fit.
        """
        for length, other in (("epochs", "steps"), ("steps", "epochs")):
            if settings.get(length) is not None and other not in settings:
                settings = {**settings, other: None}
        return _validate({**self.model_dump(), **settings})

    def preprocessing(self) -> Preprocessing:
        """The evaluation preset of a resolved recipe."""
        assert self.image_size is not None
        assert self.resize_size is not None
        mean, std = STATISTICS[self.channels or 3]
        sizes = self.resize_size, self.image_size
        return Preprocessing(*sizes, mean, std, value_range=self.value_range)

    def augmentation(self) -> Augmentation:
        """The training augmentation."""
        return Augmentation(
            crop_scale=self.crop_scale,
            crop_padding=self.crop_padding,
            scale_jitter=self.scale_jitter,
            flip=self.flip,
            trivial_augment=self.trivial_augment,
            erasing=self.erasing,
            mean=STATISTICS[self.channels or 3][0],
        )

    def at_once(self, processes: int) -> int:
        """Return how many images of a full batch a process computes at once."""
        assert self.batch_size is not None
        return -(-self.batch_size // (self.accumulate * processes))

    def train_size(self, epoch: int) -> int:
        """Side of the training pictures in ``epoch`` (0-based): it grows linearly up to half-way,
        in steps of 16 px (8 below 64 px), which keeps the maps of all stages whole."""
        assert self.image_size is not None
        assert self.epochs is not None
        first, last = self.train_sizes
        share = first + (last - first) * min(1.0, 2 * epoch / self.epochs)
        step = 16 if self.image_size > 64 else 8
        return max(step, round(share * self.image_size / step) * step)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def builtin() -> list[str]:
    """Names of the built-in recipes, sorted.

    >>> "classic" in builtin()
    True
    """
    folder = resources.files(__package__) / "recipes"
    return sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml"))


def load(recipe: str | Path) -> Recipe:
    """Read a built-in recipe by its name, or a YAML file.

    Raises:
        RecipeError: there is none of that name, or it does not validate.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(f"Recipe file {path} does not exist (looked from {Path.cwd()})")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{recipe} is no text in UTF-8: {error}") from error
    elif str(recipe) in builtin():
        resource = resources.files(__package__) / "recipes" / f"{recipe}.yaml"
        text = resource.read_text(encoding="utf-8")
    else:
        raise RecipeError(
            f"Unknown recipe {str(recipe)!r}{did_you_mean(str(recipe), builtin())}. "
            f"Built in: {', '.join(builtin())}; or give a .yaml file"
        )
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"{recipe} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{recipe} holds a {type(values).__name__}; expected `key: value` lines")
    return _validate(values)


def _validate(values: dict[str, Any]) -> Recipe:
    known = list(Recipe.model_fields)
    for key in values:
        if key not in known:
            raise RecipeError(
                f"Unknown recipe key {key!r}{did_you_mean(str(key), known)}. "
                f"Known: {', '.join(known)}"
            )
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            problem, got = f"{'.'.join(map(str, item['loc']))}: {plain(item['msg'])}", item["input"]
            said = isinstance(got, str) and repr(got) in problem
            problems.append(problem if said else f"{problem}, got {got!r}")
        raise RecipeError(f"Recipe: {'; '.join(problems)}") from None
