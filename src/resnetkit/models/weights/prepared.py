"""Find out how other code prepared its images, as fields of `Preprocessing`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ...errors import WeightsError, did_you_mean

FIELDS = (
    *("resize_size", "crop_size", "mean", "std", "interpolation", "squash", "decoder", "bgr"),
    "value_range",
)
_SHORT = {"resize": "resize_size", "crop": "crop_size"}
_PILLOW = (
    "nearest",
    "lanczos",
    "bilinear",
    "bicubic",
    "box",
    "hamming",
)  # in the order of Pillow's resampling constants

_WITH_FILE = "--preprocessing FILE"

# Image processors in transformers: (whether a size given as one number means a square, whether the
# processor crops by default).
_TRANSFORMERS = {
    "ConvNext": (False, False),
    "ViT": (True, False),
    "DeiT": (True, True),
    "CLIP": (False, True),
    "Bit": (False, True),
}
# The processing steps that are supported here. Images are always converted to RGB.
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def read_preprocessing(path: Path) -> dict[str, Any]:
    """Return the preprocessing in a file, as fields of `Preprocessing`.

    Args:
        path: YAML or JSON with the fields themselves (``resize: 256``, ``mean: [0.5, 0.5, 0.5]``),
            transformers' ``preprocessor_config.json``, or timm's ``config.json``.

    Raises:
        WeightsError: the file cannot be read, or does not describe a preprocessing.
    """
    content = _read_yaml(path)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise WeightsError(f"{path} holds a {kind}; expected {', '.join(FIELDS)}")
    return _parse_library_config(content, path) or normalize_fields(content, str(path))


def find_preprocessing(file: Path) -> Path | None:
    """Return the YAML file next to a checkpoint that says how its images were prepared, or None.

    For ``model.pth``, it is ``model.yaml``, or else ``preprocessing.yaml`` in the same folder; the
    suffix may also be ``.yml``. A ``model.yaml`` without preprocessing fields, such as the settings
    of a training run, is ignored.

    Raises:
        WeightsError: a file cannot be read as YAML, or exists with both suffixes.
    """
    for stem in (file.stem, "preprocessing"):
        found = [file.with_name(f"{stem}{suffix}") for suffix in (".yaml", ".yml")]
        found = [path for path in found if path.is_file() and path != file]
        if len(found) > 1:
            raise WeightsError(
                f"{found[0]} and {found[1].name} could both say how images were prepared. Name one "
                "with --preprocessing"
            )
        if found and (stem == "preprocessing" or _has_a_field(_read_yaml(found[0]))):
            return found[0]
    return None


def _has_a_field(content: Any) -> bool:
    """Return whether at least one key is the name of a field, possibly slightly misspelled.

    `did_you_mean` is less strict: it would take a training run's ``batch_size`` for ``crop_size``.
    """
    known = (*FIELDS, *_SHORT)
    return isinstance(content, dict) and any(
        name[0] == key[0] and get_close_matches(key, [name], cutoff=0.8)
        for key in map(str, content)
        for name in known
        if key
    )


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        try:
            return json.loads(text)  # YAML would read the number 1e-05 as text
        except ValueError:
            return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(f"{path} cannot be read as YAML or JSON: {error}") from error


def describe_fields(fields: Mapping[str, Any]) -> str:
    """Return fields as one line of text, for notes."""
    return ", ".join(f"{key} {value}" for key, value in fields.items())


def read_hub_configs(
    file: Path, *, preprocessing: bool = True
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]:
    """Read the configuration files next to a checkpoint in a folder from a model hub.

    Args:
        file: the checkpoint.
        preprocessing: whether to read the preprocessing.

    Returns:
        Fields of the preprocessing, options of the network, class names by the key they are
        stored under, and notes.

    Raises:
        WeightsError: the files describe a network that is not supported, or cannot be read.
    """
    fields: dict[str, Any] = {}
    options: dict[str, Any] = {}
    names: dict[str, Any] = {}
    notes: list[str] = []
    config = file.with_name("config.json")
    content = _read_json(config)
    if content.get("model_type") == "resnet":
        if content.get("layer_type", "bottleneck") == "bottleneck":  # transformers' defaults
            first = content.get("downsample_in_bottleneck", False)
            options["stride_on"] = "1x1" if first else "3x3"
            notes.append(
                f"{config.name} has downsample_in_bottleneck={first}: used stride_on="
                f"{options['stride_on']}"
            )
        if content.get("hidden_act", "relu") != "relu" or content.get("downsample_in_first_stage"):
            raise WeightsError(
                f"{config} describes a network whose activation or first stage differs from a "
                "ResNet's, which is not supported"
            )
        names = {key: content[key] for key in ("id2label",) if key in content}
    elif "pretrained_cfg" in content or "crop_pct" in content:
        names = {key: content[key] for key in ("label_names",) if key in content}
    for path in (config, file.with_name("preprocessor_config.json")) if preprocessing else ():
        content = _read_json(path)
        found = _parse_library_config(content, path)
        if content and not found and path != config:
            raise WeightsError(
                f"{path} does not name its image_processor_type, so its meaning is unclear. Say "
                f"how images were prepared in YAML: {_WITH_FILE}"
            )
        if found:
            fields = found
            notes.append(
                f"used the preprocessing from {path.name}: {describe_fields(fields)}; override "
                "with --preprocessing FILE"
            )
    return fields, options, names, notes


def read_timm_architecture(file: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the network named in timm's ``config.json`` next to a checkpoint.

    Args:
        file: the checkpoint.

    Returns:
        The name, or None; and the arguments that change what the network computes but do not show
        in any tensor.
    """
    content = _read_json(file.with_name("config.json"))
    name = content.get("architecture")
    if not isinstance(name, str):
        return None, {}
    model_args = content.get("model_args") or {}
    if type(model_args) is not dict:
        model_args = {}
    arguments = {"global_pool": content.get("global_pool"), **model_args}
    changing = {
        key: value
        for key, value in arguments.items()
        if value is not None and key not in _HARMLESS and _DEFAULTS.get(key) != value
    }
    return name.partition(".")[0], changing


# timm's arguments that matter only in training, or that show in the tensors.
_HARMLESS = (
    *("num_classes", "in_chans", "pretrained", "zero_init_last", "checkpoint_path"),
    *("drop_rate", "drop_path_rate", "drop_block_rate", "pretrained_cfg", "pretrained_cfg_overlay"),
)
# timm's arguments, with the values that give a standard ResNet.
_DEFAULTS = {"global_pool": "avg", "output_stride": 32, "act_layer": "relu", "cardinality": 1}


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if the file is missing or holds anything else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}. Fix or remove the file") from error
    return content if isinstance(content, dict) else {}


def normalize_fields(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields under the names of `Preprocessing`, with mean and std in 0..1.

    If one of the two sizes is missing, it is set so that the crop is 0.875 of the resized side, or
    all of it if images are squashed.

    Args:
        given: fields by name; mean and std may be on a scale from 0 to 255.
        where: where the fields come from, for messages.

    Raises:
        WeightsError: a field is unknown or has an invalid value.
    """
    return _complete(_normalize(given, where), where)


def override_fields(fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``fields`` overridden by those in ``given``, normalized as by `normalize_fields`.

    Args:
        fields: normalized fields from a file.
        given: fields from the user.

    Raises:
        WeightsError: a field is unknown or has an invalid value, or the fields cannot be combined.
    """
    where = "preprocessing"
    own = _normalize(given, where)
    merged = {**fields, **own}
    sizes = {"resize_size", "crop_size"}
    if len(sizes & own.keys()) == 1 and merged.get("crop_size", 0) > merged.get(
        "resize_size", 8192
    ):
        raise WeightsError(
            f"{where}: the crop of {merged['crop_size']} px is larger than the image resized to "
            f"{merged['resize_size']} px. Give both --resize and --crop"
        )
    return _complete(merged, where)


def _normalize(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the given fields under their full names, with mean and std in 0..1."""
    found = {_SHORT.get(key, key): value for key, value in given.items() if value is not None}
    for key in found:
        if key not in FIELDS:
            question = did_you_mean(str(key), (*FIELDS, *_SHORT))
            hint = f"{question} " if question else ""
            raise WeightsError(f"{where}: unknown {key}. {hint}Known: {', '.join(FIELDS)}")
    for key in ("mean", "std"):
        if key in found:
            found[key] = _parse_numbers(found[key], f"{where}: {key}")
    if any(value > 2 for value in (*found.get("mean", ()), *found.get("std", ()))):
        if not {"mean", "std"} <= found.keys():
            raise WeightsError(f"{where}: on a scale of 0 to 255, give both mean and std")
        found |= {key: [value / 255 for value in found[key]] for key in ("mean", "std")}
    _check_values(found, where)
    if "interpolation" in found:
        found["interpolation"] = str(found["interpolation"]).lower()
        if found["interpolation"] not in _PILLOW:
            raise WeightsError(
                f"{where}: interpolation must be one of {', '.join(_PILLOW)}; got "
                f"{found['interpolation']!r}"
            )
    return found


def _complete(found: dict[str, Any], where: str) -> dict[str, Any]:
    """Fill in the second size if only one is given; check that the fields can be combined."""
    is_bilinear = found.get("interpolation", "bilinear") == "bilinear"
    if found.get("decoder") == "scaled" and (found.get("squash") or not is_bilinear):
        raise WeightsError(
            f"{where}: decoder scaled needs bilinear interpolation without squash; use decoder full"
        )
    share = 1.0 if found.get("squash") else 0.875
    if "crop_size" in found and "resize_size" not in found:
        found["resize_size"] = int(found["crop_size"] / share)
    if "resize_size" in found and "crop_size" not in found:
        found["crop_size"] = round(found["resize_size"] * share)
    return found


def _check_values(found: Mapping[str, Any], where: str) -> None:
    """Raise an error that names the field if a value is invalid."""
    for key, limit in (("mean", -math.inf), ("std", 0.0)):
        wrong = [value for value in found.get(key, ()) if not limit < value < math.inf]
        if wrong:
            expected = "greater than 0" if key == "std" else "finite"
            raise WeightsError(f"{where}: {key} must be {expected}; got {wrong[0]:g}")
    for key, most in (("resize_size", 8192), ("crop_size", 4096)):  # `Preprocessing`'s limits
        value = found.get(key, 1)
        if type(value) is not int or not 0 < value <= most:
            raise WeightsError(f"{where}: {key} must be 1 to {most} px; got {value!r}")
    for key in ("squash", "bgr"):
        if type(found.get(key, False)) is not bool:
            raise WeightsError(f"{where}: {key} must be true or false; got {found[key]!r}")
    if found.get("decoder", "full") not in ("full", "scaled"):
        raise WeightsError(f"{where}: decoder must be full or scaled; got {found['decoder']!r}")


def _parse_numbers(value: Any, what: str) -> list[float]:
    """Return the numbers in a list, a single number, or a string with commas."""
    items = value.split(",") if isinstance(value, str) else value
    items = items if isinstance(items, list | tuple) else [items]
    try:
        return [float(item) for item in items]
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{what} must be one number, or one for each channel; got {value!r}"
        ) from error


def _parse_library_config(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the preprocessing in a file from timm or transformers; {} for other files."""
    try:
        if found := _parse_timm(content):
            return normalize_fields(found, str(path))
        if not (found := _parse_transformers(content)):
            return {}
        # In transformers, mean and std are never on a scale of 0 to 255, however large they are.
        statistics = {key: found.pop(key) for key in ("mean", "std")}
        _check_values(statistics, str(path))
        return normalize_fields(found, str(path)) | statistics
    except WeightsError as error:
        message = str(error).removeprefix(f"{path}: ")
        raise WeightsError(f"{path}: {message}") from error
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
        raise WeightsError(f"{path} has unexpected content: {error!r}") from error


def _parse_timm(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing in timm's ``config.json``; {} for other files."""
    config = content.get("pretrained_cfg", content)
    if not isinstance(config, Mapping) or not {"crop_pct", "input_size"} <= config.keys():
        return {}
    side = _square_side(config["input_size"][-2], config["input_size"][-1])
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise WeightsError(f"crop_mode must be center or squash; got {mode!r}")
    return {
        "resize_size": math.floor(side / config["crop_pct"]),
        "crop_size": side,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config.get("interpolation") or "bilinear",
        **({"squash": True} if mode == "squash" else {}),
    }


def _parse_transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing in transformers' ``preprocessor_config.json``; {} for others.

    Every setting that changes pixels is applied, or refused by name. No defaults are assumed: they
    differ between the classes of transformers, and between its versions.
    """
    kind = content.get("image_processor_type") or content.get("feature_extractor_type")
    if not kind:
        return {}
    name = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(kind))
    if name not in _TRANSFORMERS:
        raise WeightsError(
            f"{kind} is not known; known: {', '.join(_TRANSFORMERS)}. Say how images were prepared "
            f"in YAML: {_WITH_FILE}"
        )
    refused = [
        f"{key}={value}"
        for key, value in content.items()
        if value
        and (key.startswith("do_") or key in ("rescale_offset", "use_square_size"))
        and key not in _STEPS
    ]
    if refused:
        raise WeightsError(f"{', '.join(refused)} is not supported")
    if content.get("do_resize", True) is False:
        raise WeightsError("do_resize must not be false, because images need a common size")
    resample = _require(content, "resample")
    if type(resample) is not int or not 0 <= resample < len(_PILLOW):
        raise WeightsError(f"resample must be 0 to {len(_PILLOW) - 1}; got {resample!r}")
    statistics = _transformers_statistics(content)
    return {"interpolation": _PILLOW[resample], **statistics, **_transformers_sizes(content, name)}


def _transformers_statistics(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean and std for pixel values in 0..1, including transformers' rescale factor.

    For v in 0..255, transformers computes ``(v * factor - mean) / std``. Applied to ``v / 255``,
    this amounts to a mean of ``mean / (255 * factor)`` and a std of ``std / (255 * factor)``.
    """
    scale = 255.0
    if content.get("do_rescale", True):
        factor = content.get("rescale_factor", 1 / 255)
        if type(factor) not in (int, float) or not 0 < factor < math.inf:
            raise WeightsError(f"rescale_factor must be greater than 0; got {factor!r}")
        scale = 1.0 if math.isclose(factor, 1 / 255, rel_tol=1e-6) else 255.0 * factor
    mean: list[float] = [0.0] * 3
    std: list[float] = [1.0] * 3
    if content.get("do_normalize", True):
        mean = _parse_numbers(_require(content, "image_mean"), "image_mean")
        std = _parse_numbers(_require(content, "image_std"), "image_std")
    return {"mean": [value / scale for value in mean], "std": [value / scale for value in std]}


def _transformers_sizes(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the sizes, and whether images are squashed.

    Args:
        content: the configuration.
        name: a key in `_TRANSFORMERS`.
    """
    is_square, crops = _TRANSFORMERS[name]
    size = _require(content, "size")
    if not isinstance(size, Mapping):
        size = {"height": size, "width": size} if is_square else {"shortest_edge": size}
    unknown = [key for key in size if key not in ("shortest_edge", "height", "width")]
    if unknown:
        raise WeightsError(f"size with {', '.join(unknown)} is not supported")
    crop: Any = None
    do_crop = content.get("do_center_crop")
    if crops if do_crop is None else do_crop:
        crop = _require(content, "crop_size")
        crop = _square_side(crop["height"], crop["width"]) if isinstance(crop, Mapping) else crop
    if name == "ConvNext":  # such as microsoft/resnet-50
        side = size["shortest_edge"]
        if crop not in (None, side):
            raise WeightsError(f"crop_size {crop} with size {side} is not supported")
        if side >= 384:
            return {"resize_size": side, "crop_size": side, "squash": True}
        share = content.get("crop_pct") or 224 / 256
        return {"resize_size": int(side / share), "crop_size": side}
    if content.get("crop_pct"):
        raise WeightsError("crop_pct is supported only for ConvNext; no other processor uses it")
    if "shortest_edge" in size:
        if crop is None:
            raise WeightsError("no center crop is given, so images have no common size")
        return {"resize_size": size["shortest_edge"], "crop_size": crop}
    side = _square_side(size["height"], size["width"])
    return {"resize_size": side, "crop_size": crop or side, "squash": True}


def _require(content: Mapping[str, Any], key: str) -> Any:
    value = content.get(key)
    if value is None:
        raise WeightsError(
            f"{key} is missing, and its default differs between versions of transformers. Add it"
        )
    return value


def _square_side(height: int, width: int) -> int:
    if height != width:
        raise WeightsError(f"images must be square; these are {width} x {height} px")
    return int(height)
