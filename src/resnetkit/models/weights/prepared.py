"""How other code prepared the images of its checkpoint -> fields of `Preprocessing`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...errors import WeightsError

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
)  # in the order of their numbers


def read_preprocessing(path: Path) -> dict[str, Any]:
    """Return the preprocessing in a file, as fields of `Preprocessing`.

    Args:
        path: YAML or JSON with the fields themselves (``resize: 256``, ``mean: [0.5, 0.5, 0.5]``),
            transformers' ``preprocessor_config.json``, or timm's ``config.json``.

    Raises:
        WeightsError: the file cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))  # JSON is YAML too
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise WeightsError(f"{path} holds a {kind}; expected {', '.join(FIELDS)}")
    return normalize_fields(_parse_library_config(content, path) or content, str(path))


def read_hub_configs(
    file: Path,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]:
    """Return what the files next to a checkpoint say, if it is in a model hub folder.

    Args:
        file: the checkpoint.

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
                f"{config} describes a network whose activation or first stage differs, which is "
                "not supported"
            )
        names = {key: content[key] for key in ("id2label",) if key in content}
    elif "pretrained_cfg" in content or "crop_pct" in content:
        names = {key: content[key] for key in ("label_names",) if key in content}
    for path in (config, file.with_name("preprocessor_config.json")):
        if found := _parse_library_config(_read_json(path), path):
            fields = normalize_fields(found, str(path))
            shown = ", ".join(f"{key} {value}" for key, value in fields.items())
            notes.append(f"took the preprocessing from {path.name}: {shown}")
    return fields, options, names, notes


def read_timm_architecture(file: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the network that timm's ``config.json`` beside a checkpoint names.

    Args:
        file: the checkpoint.

    Returns:
        The name, or None; and those of the network's arguments that change what it computes,
        although no tensor shows them.
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


# timm's arguments that matter only to training, or that tensors show.
_HARMLESS = (
    *("num_classes", "in_chans", "pretrained", "zero_init_last", "checkpoint_path"),
    *("drop_rate", "drop_path_rate", "drop_block_rate", "pretrained_cfg", "pretrained_cfg_overlay"),
)
# timm's arguments, with the values that make a plain ResNet.
_DEFAULTS = {"global_pool": "avg", "output_stride": 32, "act_layer": "relu", "cardinality": 1}


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if there is no file or it holds something else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}. Fix it or move it away") from error
    return content if isinstance(content, dict) else {}


def normalize_fields(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields under the names of `Preprocessing`, with mean and std in 0..1.

    If one of the two sizes is missing, the crop is 0.875 of the resized side, or all of it if
    images are squashed.

    Args:
        given: fields by name; mean and std may be on a scale from 0 to 255.
        where: where the fields are from, for messages.

    Raises:
        WeightsError: a field is unknown or has an invalid value.
    """
    found = {_SHORT.get(key, key): value for key, value in given.items() if value is not None}
    unknown = [key for key in found if key not in FIELDS]
    if unknown:
        raise WeightsError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(FIELDS)}")
    for key in ("mean", "std"):
        if key in found:
            found[key] = _parse_numbers(found[key], f"{where}: {key}")
    if any(value > 2 for value in (*found.get("mean", ()), *found.get("std", ()))):
        if not {"mean", "std"} <= found.keys():
            raise WeightsError(f"{where}: on a scale of 0 to 255, give both mean and std")
        found |= {key: [value / 255 for value in found[key]] for key in ("mean", "std")}
    interpolation = str(found.get("interpolation", "bilinear")).lower()
    if interpolation not in _PILLOW:
        raise WeightsError(
            f"{where}: interpolation must be one of {', '.join(_PILLOW)}; got {interpolation!r}"
        )
    if "interpolation" in found:
        found["interpolation"] = interpolation
    if found.get("decoder") == "scaled" and (found.get("squash") or interpolation != "bilinear"):
        raise WeightsError(
            f"{where}: decoder scaled needs bilinear interpolation without squash; use decoder full"
        )
    share = 1.0 if found.get("squash") else 0.875
    if "crop_size" in found and "resize_size" not in found:
        found["resize_size"] = int(found["crop_size"] / share)
    if "resize_size" in found and "crop_size" not in found:
        found["crop_size"] = round(found["resize_size"] * share)
    return found


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
        return _parse_timm(content) or _parse_transformers(content)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
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
    """Return the preprocessing in transformers' ``preprocessor_config.json``; {} for others."""
    kind = content.get("image_processor_type") or content.get("feature_extractor_type")
    if not kind or "size" not in content:
        return {}
    if content.get("do_resize", True) is False or content.get("do_rescale", True) is False:
        raise WeightsError("do_resize and do_rescale must not be false")
    size = content["size"]
    size = size if isinstance(size, Mapping) else {"shortest_edge": size}
    found: dict[str, Any] = {"interpolation": _PILLOW[content.get("resample", 2)]}
    if content.get("do_normalize", True):
        found |= {"mean": list(content["image_mean"]), "std": list(content["image_std"])}
    else:
        found |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    crop = None
    if content.get("do_center_crop", "crop_size" in content):
        crop = content.get("crop_size")
    if isinstance(crop, Mapping):
        crop = _square_side(crop["height"], crop["width"])
    if "crop_pct" in content or "ConvNext" in kind:  # such as microsoft/resnet-50
        side = size["shortest_edge"]
        if side >= 384:
            return found | {"resize_size": side, "crop_size": side, "squash": True}
        share = content.get("crop_pct") or 224 / 256
        return found | {"resize_size": int(side / share), "crop_size": side}
    if "shortest_edge" in size:
        if crop is None:
            raise WeightsError("no center crop is given, so images have no common size")
        return found | {"resize_size": size["shortest_edge"], "crop_size": crop}
    side = _square_side(size["height"], size["width"])
    return found | {"resize_size": side, "crop_size": crop or side, "squash": True}


def _square_side(height: int, width: int) -> int:
    if height != width:
        raise WeightsError(f"images must be square; these are {width} x {height} px")
    return int(height)
