"""How the code that a checkpoint comes from prepared its images -> fields of `Preprocessing`."""

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
_PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by their numbers


def read_preprocessing(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file: our own fields (``resize: 256``, ``mean: [0.5, 0.5, 0.5]``),
    transformers' ``preprocessor_config.json``, or timm's ``config.json``.

    Raises:
        WeightsError: no such file, or something else is in it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))  # JSON is YAML too
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise WeightsError(f"{path} holds a {kind}; expected {', '.join(FIELDS)}")
    return checked(_of_library(content, path) or content, str(path))


def beside(file: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]:
    """What the files of a model hub say that lie beside the tensors: fields of the preprocessing,
    options of the network, class names; and notes.

    Raises:
        WeightsError: they name a network that is not one of ours.
    """
    fields, options, names, notes = {}, {}, {}, []
    config = file.with_name("config.json")
    content = _json(config)
    if content.get("model_type") == "resnet":
        if content.get("downsample_in_bottleneck"):
            options["stride_on"] = "1x1"
        if content.get("hidden_act", "relu") != "relu" or content.get("downsample_in_first_stage"):
            raise WeightsError(
                f"{config} asks for a network with another activation or first stage"
            )
        names = {key: content[key] for key in ("id2label",) if key in content}
    elif "pretrained_cfg" in content or "crop_pct" in content:
        names = {key: content[key] for key in ("label_names",) if key in content}
    for place in (config, file.with_name("preprocessor_config.json")):
        if found := _of_library(_json(place), place):
            fields = checked(found, str(place))
            shown = ", ".join(f"{key} {value}" for key, value in fields.items())
            notes.append(f"took how images are prepared from {place.name}: {shown}")
    if options:
        notes.append(f"{config.name} says downsample_in_bottleneck: took stride_on 1x1")
    return fields, options, names, notes


def architecture_beside(file: Path) -> tuple[str | None, dict[str, Any]]:
    """The network that timm's ``config.json`` beside the tensors names, and those of its arguments
    that change what the network computes, although no tensor shows them."""
    content = _json(file.with_name("config.json"))
    name, given = content.get("architecture"), content.get("model_args") or {}
    if not isinstance(name, str):
        return None, {}
    given = {"global_pool": content.get("global_pool"), **(given if type(given) is dict else {})}
    changing = {
        key: value
        for key, value in given.items()
        if value is not None and key not in _HARMLESS and _USUAL.get(key) != value
    }
    return name.partition(".")[0], changing


# Arguments of timm: those that matter to training only or are seen in tensors, and what a plain
# ResNet has.
_HARMLESS = (
    *("num_classes", "in_chans", "pretrained", "zero_init_last", "checkpoint_path"),
    *("drop_rate", "drop_path_rate", "drop_block_rate", "pretrained_cfg", "pretrained_cfg_overlay"),
)
_USUAL = {"global_pool": "avg", "output_stride": 32, "act_layer": "relu", "cardinality": 1}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}. Mend it or move it away") from error
    return content if isinstance(content, dict) else {}


def checked(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields under our names, on a scale from 0 to 1; a size that is left open follows the
    usual share of 0.875, or the other size where the image is squashed.

    Raises:
        WeightsError: a field that there is not, or a value that it cannot have.
    """
    found = {_SHORT.get(key, key): value for key, value in given.items() if value is not None}
    unknown = [key for key in found if key not in FIELDS]
    if unknown:
        raise WeightsError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(FIELDS)}")
    for key in ("mean", "std"):
        if key in found:
            found[key] = _numbers(found[key], f"{where}: {key}")
    if any(value > 2 for value in (*found.get("mean", ()), *found.get("std", ()))):
        if not {"mean", "std"} <= found.keys():
            raise WeightsError(f"{where}: mean and std on a scale to 255 go together; give both")
        found |= {key: [value / 255 for value in found[key]] for key in ("mean", "std")}
    interpolation = str(found.get("interpolation", "bilinear")).lower()
    if interpolation not in _PILLOW:
        raise WeightsError(f"{where}: interpolation is {', '.join(_PILLOW)}; got {interpolation!r}")
    if "interpolation" in found:
        found["interpolation"] = interpolation
    if found.get("decoder") == "scaled" and (found.get("squash") or interpolation != "bilinear"):
        raise WeightsError(f"{where}: squash and {interpolation} need the decoder full")
    share = 1.0 if found.get("squash") else 0.875
    if "crop_size" in found and "resize_size" not in found:
        found["resize_size"] = int(found["crop_size"] / share)
    if "resize_size" in found and "crop_size" not in found:
        found["crop_size"] = round(found["resize_size"] * share)
    return found


def _numbers(value: Any, what: str) -> list[float]:
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, list | tuple) else [parts]
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{what} is one number or one for each channel; got {value!r}"
        ) from error
    return numbers


def _of_library(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What timm or transformers wrote; nothing if it is another file."""
    try:
        return _of_timm(content) or _of_hugging_face(content)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
        raise WeightsError(f"{path} cannot be understood: {error!r}") from error


def _of_timm(content: Mapping[str, Any]) -> dict[str, Any]:
    """Of timm's ``config.json``; nothing if it is another file."""
    config = content.get("pretrained_cfg", content)
    if not isinstance(config, Mapping) or not {"crop_pct", "input_size"} <= config.keys():
        return {}
    side = _square(config["input_size"][-2], config["input_size"][-1])
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise WeightsError(f"crop_mode {mode!r} is not known here; center and squash are")
    return {
        "resize_size": math.floor(side / config["crop_pct"]),
        "crop_size": side,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config.get("interpolation") or "bilinear",
        **({"squash": True} if mode == "squash" else {}),
    }


def _of_hugging_face(content: Mapping[str, Any]) -> dict[str, Any]:
    """Of transformers' ``preprocessor_config.json``; nothing if it is another file."""
    kind = content.get("image_processor_type") or content.get("feature_extractor_type")
    if not kind or "size" not in content:
        return {}
    if content.get("do_resize", True) is False or content.get("do_rescale", True) is False:
        raise WeightsError("do_resize and do_rescale must not be false for a network of photos")
    size = content["size"]
    size = size if isinstance(size, Mapping) else {"shortest_edge": size}
    found: dict[str, Any] = {"interpolation": _PILLOW[content.get("resample", 2)]}
    if content.get("do_normalize", True):
        found |= {"mean": list(content["image_mean"]), "std": list(content["image_std"])}
    else:
        found |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    crop = (
        content.get("crop_size") if content.get("do_center_crop", "crop_size" in content) else None
    )
    crop = _square(crop["height"], crop["width"]) if isinstance(crop, Mapping) else crop
    if "crop_pct" in content or "ConvNext" in kind:  # as microsoft/resnet-50
        side = size["shortest_edge"]
        if side >= 384:
            return found | {"resize_size": side, "crop_size": side, "squash": True}
        share = content.get("crop_pct") or 224 / 256
        return found | {"resize_size": int(side / share), "crop_size": side}
    if "shortest_edge" in size:
        if crop is None:
            raise WeightsError("no center crop is given, so that images have no common size")
        return found | {"resize_size": size["shortest_edge"], "crop_size": crop}
    side = _square(size["height"], size["width"])
    return found | {"resize_size": side, "crop_size": crop or side, "squash": True}


def _square(height: int, width: int) -> int:
    if height != width:
        raise WeightsError(f"images of {width} x {height} px are not square, as they are here")
    return int(height)
