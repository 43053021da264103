"""Where a run's initial weights come from: random numbers, a published file, or a local file.

`resolve_recipe` decides once, before anything else is done. The recipe of a run names what was
taken and its SHA-256, never ``auto``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from ..errors import RecipeError, TrainingError, WeightsError
from ..models import get_model, get_model_weights, list_weights
from ..models.architectures import ARCHITECTURES
from ..models.registry import get_skeleton
from ..models.weights import WeightsEnum, imagenet_classes, imagenet_ids, modelfile
from ..models.weights.classnames import select_names
from ..models.weights.download import fetch
from ..models.weights.reading import Checkpoint, check_finite, read_tensors
from ..models.weights.resolve import load_into, resolve_file, resolve_weights
from ..progress import say
from ..runtime import Runtime
from ..storage import sha256
from . import recipe as recipes
from .recipe import Recipe

DEFAULT_MODEL = "resnet18"


def network_name(recipe: str | Path | None, settings: dict[str, Any]) -> str:
    """The name of the network, before anything is fetched; the name of a run's folder has it."""
    loaded = recipes.load(recipe or "finetune").with_settings(settings)
    if loaded.model is None and modelfile.is_model_file(Path(loaded.weights).expanduser()):
        return modelfile.read_header(loaded.weights).architecture
    return loaded.model or DEFAULT_MODEL


def resolve_recipe(
    recipe: str | Path | None, settings: dict[str, Any], recorded: Recipe | None = None
) -> Recipe:
    """The recipe with its settings and its weights: ``none``, or what was found and its SHA-256.

    Args:
        recipe: a built-in name or a YAML file; None stands for ``finetune`` where there are weights
            to begin with, and for ``fast`` where there are none.
        settings: other values for its fields. ``weights: auto`` takes published ones that are in
            the cache, or that can be fetched without long waiting.
        recorded: the recipe of the run that is resumed; ``auto`` means what that run took.

    Raises:
        RecipeError: an unknown recipe or field.
        WeightsError: weights that were asked for by name cannot be had.
    """
    loaded = recipes.load(recipe or "finetune").with_settings(settings)
    asked = settings.get("weights", "auto" if recipe is None else loaded.weights)
    if recorded is not None and asked in ("auto", recorded.weights):
        settings = {**settings, **_weights_of(recorded)}
        return recipes.load(recipe or _default(recorded.weights)).with_settings(settings)
    found = None if asked == "none" else _find(loaded, asked)
    if found is None:
        return recipes.load(recipe or "fast").with_settings({**settings, "weights": "none"})
    return loaded.with_settings(found)


def make_network(recipe: Recipe, classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its initial weights, f(seed); and the options that build it again.

    Raises:
        RecipeError: ``model_options`` has an option that the architecture does not know, or makes
            a network that cannot tell classes.
    """
    assert recipe.model is not None
    if recipe.model_options.get("include_top", True) is not True:
        raise RecipeError(
            f"model_options of {recipe.model}: include_top leaves out the head, and a network "
            "without one cannot tell classes. Remove include_top"
        )
    given = recipe.model_options.get("num_classes", classes)
    if given != classes:
        raise RecipeError(
            f"model_options of {recipe.model}: num_classes is {given}, and the data have {classes} "
            "classes, which decide. Remove num_classes"
        )
    for key, value in recipe.model_options.items():
        if type(value) in (int, float) and value <= 0:
            raise RecipeError(
                f"model_options of {recipe.model}: {key} is {value}; expected 1 or more"
            )
    options = {**recipe.model_options, "num_classes": classes}
    start = {"zero_init_residual": True} if recipe.zero_init_residual else {}
    torch.default_generator.manual_seed(recipe.seed)  # it alone: the network is made on the CPU
    try:
        get_skeleton(recipe.model, **options)  # its errors name the options
        known = start if recipe.model in ARCHITECTURES else {}  # DarkNet-53 has no such start
        model = get_model(recipe.model, **options, **known)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model_options of {recipe.model}: {error}") from error
    return model, options


def begin(
    recipe: Recipe, classes: Sequence[str], runtime: Runtime, *, fresh: bool = True
) -> tuple[nn.Module, dict[str, Any], Runtime]:
    """Return the network on its device and in its memory layout, with the weights that the recipe
    names where it is ``fresh``; the options that build it again; and ``runtime`` with the layout.

    Raises:
        RecipeError, TrainingError, WeightsError: as `make_network` and `load`.
    """
    network, options = make_network(recipe, len(classes))
    if fresh:
        load(network, recipe, classes)
    runtime = runtime.for_network(network, recipe.channels_last)
    network = network.to(runtime.device, memory_format=runtime.memory_format)  # type: ignore[call-overload]
    return network, options, runtime


def load(network: nn.Module, recipe: Recipe, classes: Sequence[str]) -> None:
    """Copy the recipe's weights into ``network``. Of the head, the rows of those ``classes`` that
    the weights name too; the others stay new.

    Raises:
        TrainingError: the file is no longer the one that the recipe was resolved with.
        WeightsError: it cannot be had, or does not fit.
    """
    if recipe.weights == "none":
        return
    assert recipe.model is not None
    path = _locate(recipe.model, recipe.weights, brief=False)
    if recipe.weights_sha256 not in (None, sha256(path)):
        raise TrainingError(
            f"{path} is another file than this run was begun with; expected the SHA-256 "
            f"{recipe.weights_sha256}"
        )
    checkpoint = read_tensors(
        path, source=recipe.weights, prefix=recipe.weights_prefix, head=recipe.weights_head
    )
    for note in (*checkpoint.notes, *filter(None, [checkpoint.unclear])):
        say(f"Note: {recipe.weights}: {note}")
    tensors, note = _with_head(network, checkpoint, _names_in(path, recipe, checkpoint), classes)
    say(f"Note: {recipe.weights}: {note}")
    check_finite(tensors, recipe.weights)
    load_into(network, tensors, recipe.weights)


def _names_in(path: Path, recipe: Recipe, checkpoint: Checkpoint) -> list[str] | None:
    """The names of the logits of the weights; None if nothing says them."""
    if modelfile.is_model_file(path):
        return list(modelfile.read_header(path).classes)
    member = _published(str(recipe.model), recipe.weights)
    if member is not None:
        return list(member.meta["categories"])
    head = checkpoint.tensors.get("fc.weight")
    count = 0 if head is None else len(head)
    names, notes = select_names(checkpoint.classes, count, recipe.weights)
    for note in notes:
        say(f"Note: {recipe.weights}: {note}")
    return names


def _with_head(
    network: nn.Module, given: Checkpoint, names: Sequence[str] | None, classes: Sequence[str]
) -> tuple[dict[str, Tensor], str]:
    """The tensors with a head for ``classes``, and what became of the head in words. Folders may be
    called by the WordNet ids of ImageNet's classes."""
    own, tensors = network.state_dict(), dict(given.tensors)
    heads = [n for n in ("fc.weight", "fc.bias") if n in own]
    theirs = {n: tensors.pop(n) for n in ("fc.weight", "fc.bias") if n in tensors}
    ids = dict(zip(imagenet_ids(), imagenet_classes(), strict=True))
    rows = {normalize("NFC", name): i for i, name in enumerate(names or ())}
    found = [rows.get(normalize("NFC", name), rows.get(ids.get(name, ""))) for name in classes]
    fitting = all(n in theirs and theirs[n].shape[1:] == own[n].shape[1:] for n in heads)
    kept = [(i, row) for i, row in enumerate(found) if row is not None] if fitting else []
    for name in heads:
        tensors[name] = own[name].clone()
        for i, row in kept:
            tensors[name][i] = theirs[name][row]
    if not theirs:
        why = "nothing says which head to take" if given.unclear else "the file has none"
        return tensors, f"the head is new, since {why}"
    if names is None:
        return tensors, (
            "the head is new, since the file does not name its classes; `resnet convert` with "
            "--classes makes a model file of it, whose head is matched by name"
        )
    if not kept:
        return tensors, f"the head is new, since it is for other classes ({_some(names)})"
    if len(kept) == len(classes):
        return tensors, "the head is kept: its rows were matched with these classes by name"
    new = [name for name, row in zip(classes, found, strict=True) if row is None]
    return tensors, (
        f"{len(kept)} of {len(classes)} rows of the head are kept, matched by name; new is the "
        f"head for {_some(new)}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def to_share(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as the model file holds it, which others may get: of a file of weights its
    name, of an address neither password nor query. The SHA-256 says which file it was."""
    weights = recipe.weights
    if weights.startswith(("https://", "http://")):
        parts = urlsplit(weights)
        weights = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    elif Path(weights).is_absolute():
        weights = Path(weights).name
    return {**recipe.model_dump(mode="json"), "weights": weights}


def _default(weights: str) -> str:
    return "fast" if weights == "none" else "finetune"


def _weights_of(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = {"weights": recipe.weights, "weights_sha256": recipe.weights_sha256}
    if recipe.weights != "none":
        found |= {"model": recipe.model, "model_options": recipe.model_options}
    return found


def _find(recipe: Recipe, asked: str) -> dict[str, Any] | None:
    """The fields of a recipe that names its weights; None where ``auto`` finds nothing."""
    name = recipe.model or DEFAULT_MODEL
    if asked != "auto":
        return _found(recipe, name, asked, brief=False)
    if not list_weights(name) or recipe.model_options:
        return None  # nothing is published for this network
    try:
        return _found(recipe, name, "DEFAULT", brief=True)
    except WeightsError as error:
        say(f"Beginning from random weights, since published ones cannot be had: {error}")
        return None


def _found(recipe: Recipe, name: str, asked: str, brief: bool) -> dict[str, Any]:
    path, member = _locate(name, asked, brief), _published(name, asked)
    options = recipe.model_options
    is_file = member is None and "://" not in asked
    weights = str(path.absolute()) if is_file else str(member or asked)
    if modelfile.is_model_file(path):
        header = modelfile.read_header(path)
        if recipe.model not in (None, header.architecture):
            raise RecipeError(
                f"{asked} holds a {header.architecture}, and the recipe asks for a {name}; leave "
                "out --model, or give other weights"
            )
        built = {key: value for key, value in header.options.items() if key != "num_classes"}
        name, options = header.architecture, {**built, **options}
    return {
        "model": name,
        "model_options": options,
        "weights": weights,
        "weights_sha256": sha256(path),
    }


def _published(name: str, asked: str) -> WeightsEnum | None:
    """The published weights that ``asked`` names; None where it is a file or an address."""
    return resolve_weights(asked, get_model_weights(name) if list_weights(name) else None)


def _locate(name: str, asked: str, brief: bool) -> Path:
    """The file on this machine, fetched if need be."""
    member = _published(name, asked)
    return resolve_file(asked) if member is None else fetch(member.url, brief=brief)
