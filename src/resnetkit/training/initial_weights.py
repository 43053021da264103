"""The initial weights of a run: random numbers, a published file, or a local file.

`resolve_recipe` chooses the weights once, before anything else happens. From then on, the recipe
names the weights and their SHA-256, never ``auto``.
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
from ..models.skeleton import get_skeleton
from ..models.weights import Starter_Weights, WeightsEnum, imagenet_classes, imagenet_ids, modelfile
from ..models.weights.classnames import select_names
from ..models.weights.reading import Checkpoint, check_finite, read_tensors
from ..models.weights.resolve import load_into, resolve_file, resolve_weights
from ..progress import say
from ..runtime import Runtime
from ..storage import sha256
from .recipe import DEFAULT_MODEL, Recipe, load_recipe

STARTER = Starter_Weights.TINY_IMAGENET
"""The weights that runs start from if no published ones are available."""

STARTER_MODEL = "resnet18_starter"


def network_name(recipe: str | Path | None, settings: dict[str, Any]) -> str:
    """Return the name of the network, without downloading anything.

    The name of the run folder includes it.
    """
    loaded = load_recipe(recipe or "finetune").with_settings(settings)
    file = Path(loaded.weights).expanduser()
    if loaded.model is None and modelfile.is_model_file(file):
        return modelfile.read_header(file).architecture
    return loaded.model or DEFAULT_MODEL


def resolve_recipe(
    recipe: str | Path | None, settings: dict[str, Any], recorded: Recipe | None = None
) -> Recipe:
    """Load a recipe, apply the settings, and resolve its weights.

    The resulting recipe has the weights ``none``, or names the weights and their SHA-256.

    Args:
        recipe: a built-in name or a YAML file. None means ``finetune`` if there are weights to
            start from, else ``fast``.
        settings: new values for fields of the recipe. ``weights: auto`` uses published weights if
            they are in the cache or can be downloaded without a long wait.
        recorded: the recipe of the run being resumed; ``auto`` means the weights of that run.

    Raises:
        RecipeError: the recipe or a field is unknown.
        WeightsError: weights were named but are not available.
    """
    loaded = load_recipe(recipe or "finetune").with_settings(settings)
    weights = "auto" if recipe is None and "weights" not in settings else loaded.weights
    if recorded is not None and weights in ("auto", recorded.weights):
        default = "fast" if recorded.weights == "none" else "finetune"
        settings = {**settings, **_recorded_weights(recorded, loaded)}
        return load_recipe(recipe or default).with_settings(settings)
    found = None if weights == "none" else _resolve_weights(loaded, weights)
    if found is None:
        return load_recipe(recipe or "fast").with_settings({**settings, "weights": "none"})
    return loaded.with_settings(found)


def _recorded_weights(recorded: Recipe, wanted: Recipe) -> dict[str, Any]:
    """Return the fields of a recorded recipe that a resumed run keeps.

    The network that belongs to the weights is kept as well, except for what ``wanted`` sets.
    """
    fields: dict[str, Any] = {
        "weights": recorded.weights,
        "weights_sha256": recorded.weights_sha256,
    }
    if recorded.weights != "none":
        same = wanted.model in (None, recorded.model)
        fields["model"] = wanted.model or recorded.model
        fields["model_options"] = {
            **(recorded.model_options if same else {}),
            **wanted.model_options,
        }
    return fields


def _resolve_weights(recipe: Recipe, weights: str) -> dict[str, Any] | None:
    """Return the recipe fields that describe the weights; None if ``auto`` finds no weights."""
    model = recipe.model or DEFAULT_MODEL
    if weights != "auto":
        return _weights_fields(recipe, model, weights, brief=False)
    fits_starter = _fits_starter(recipe)
    if list_weights(model) and not recipe.model_options:
        try:
            return _weights_fields(recipe, model, "DEFAULT", brief=True)
        except WeightsError as error:
            instead = (
                f"those that ship with resnetkit ({STARTER})" if fits_starter else "random ones"
            )
            say(f"Published weights are not available, so starting from {instead}: {error}")
    return _weights_fields(recipe, model, str(STARTER), brief=True) if fits_starter else None


def _fits_starter(recipe: Recipe) -> bool:
    """Return whether the recipe's network matches the starter weights, or is left open."""
    options = {name: value for name, value in recipe.model_options.items() if name != "in_channels"}
    is_open = recipe.model is None and not options
    return is_open or (recipe.model in (None, "resnet18") and options == {"width": 32})


def _weights_fields(recipe: Recipe, model: str, weights: str, *, brief: bool) -> dict[str, Any]:
    path = _weights_file(model, weights, brief=brief)
    member = _published_member(model, weights)
    options = recipe.model_options
    is_local_file = member is None and "://" not in weights
    if modelfile.is_model_file(path) and model != STARTER_MODEL:
        header = modelfile.read_header(path)
        if recipe.model not in (None, header.architecture):
            raise RecipeError(
                f"{weights} holds a {header.architecture}, but the recipe asks for a {model}. "
                "Remove --model, or use other weights"
            )
        saved = {key: value for key, value in header.options.items() if key != "num_classes"}
        model = header.architecture
        options = {**saved, **options}
    return {
        "model": model,
        "model_options": options,
        "weights": str(path.absolute()) if is_local_file else str(member or weights),
        "weights_sha256": sha256(path),
    }


def _published_member(model: str, weights: str) -> WeightsEnum | None:
    """Return the published weights with this name; None if the name is a file or a URL."""
    if weights.startswith(f"{Starter_Weights.__name__}."):
        return Starter_Weights.verify(weights)
    return resolve_weights(weights, get_model_weights(model) if list_weights(model) else None)


def _weights_file(model: str, weights: str, *, brief: bool) -> Path:
    """Return the local path of the weights, downloaded if needed.

    Args:
        model: the name of the network.
        weights: a published name, a file or a URL.
        brief: give up quickly if the server with the published weights does not respond.
    """
    member = _published_member(model, weights)
    return resolve_file(weights) if member is None else member.file(brief=brief)


def make_network(recipe: Recipe, classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network with random weights, f(seed); return it and the options that rebuild it.

    Raises:
        RecipeError: ``model_options`` has an unknown option, an invalid value, or an option that
            removes the head or changes the number of classes.
    """
    assert recipe.model is not None
    if recipe.model_options.get("include_top", True) is not True:
        raise RecipeError(
            f"model_options of {recipe.model}: include_top removes the head, and a network without "
            "a head cannot classify. Remove include_top"
        )
    num_classes = recipe.model_options.get("num_classes", classes)
    if num_classes != classes:
        raise RecipeError(
            f"model_options of {recipe.model}: num_classes is {num_classes}, but the data has "
            f"{classes} classes. Remove num_classes"
        )
    for key, value in recipe.model_options.items():
        if type(value) in (int, float) and value <= 0:
            raise RecipeError(
                f"model_options of {recipe.model}: {key} is {value}; expected 1 or more"
            )
    options = {**recipe.model_options, "num_classes": classes}
    init_options: dict[str, Any] = {}
    if recipe.zero_init_residual and recipe.model in ARCHITECTURES:  # not DarkNet-53
        init_options["zero_init_residual"] = True
    torch.default_generator.manual_seed(recipe.seed)  # enough, because the model is on the CPU
    try:
        get_skeleton(recipe.model, **options)  # first, because its errors list the options
        model = get_model(recipe.model, **options, **init_options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model_options of {recipe.model}: {error}") from error
    return model, options


def initial_network(
    recipe: Recipe, classes: Sequence[str], runtime: Runtime, *, load_weights: bool = True
) -> tuple[nn.Module, dict[str, Any], Runtime]:
    """Build the network on its device, with its initial weights.

    Args:
        recipe: the recipe, with its weights resolved.
        classes: the class names.
        runtime: the device.
        load_weights: whether to load the recipe's weights file, if it has one.

    Returns:
        The network, the options that rebuild it, and ``runtime`` with the network's memory layout.

    Raises:
        RecipeError, TrainingError, WeightsError: see `make_network` and `load_initial_weights`.
    """
    network, options = make_network(recipe, len(classes))
    if load_weights:
        load_initial_weights(network, recipe, classes)
    runtime = runtime.for_network(network, recipe.channels_last)
    network = network.to(runtime.device, memory_format=runtime.memory_format)  # type: ignore[call-overload]
    return network, options, runtime


def load_initial_weights(network: nn.Module, recipe: Recipe, classes: Sequence[str]) -> None:
    """Copy the recipe's weights into the network.

    The rows of the head are matched by class name. Classes that the weights do not name keep the
    random rows of the new head.

    Raises:
        TrainingError: the file changed since the recipe was resolved.
        WeightsError: the weights are not available, or do not fit the network.
    """
    if recipe.weights == "none":
        return
    assert recipe.model is not None
    path = _weights_file(recipe.model, recipe.weights, brief=False)
    if recipe.weights_sha256 not in (None, sha256(path)):
        raise TrainingError(
            f"{path} is not the file that this run started with; expected the SHA-256 "
            f"{recipe.weights_sha256}"
        )
    checkpoint = read_tensors(
        path, source=recipe.weights, prefix=recipe.weights_prefix, head=recipe.weights_head
    )
    for note in (*checkpoint.notes, *filter(None, [checkpoint.unclear])):
        say(f"Note: {recipe.weights}: {note}")
    names = _logit_names(path, recipe, checkpoint)
    tensors, note = _match_head(network, checkpoint, names, classes=classes)
    say(f"Note: {recipe.weights}: {note}")
    check_finite(tensors, recipe.weights)
    load_into(network, tensors, recipe.weights)


def _logit_names(path: Path, recipe: Recipe, checkpoint: Checkpoint) -> list[str] | None:
    """Return the class names for the logits of the weights file; None if they are unknown."""
    if modelfile.is_model_file(path):
        return list(modelfile.read_header(path).classes)
    member = _published_member(str(recipe.model), recipe.weights)
    if member is not None:
        return list(member.meta["categories"])
    head = checkpoint.tensors.get("fc.weight")
    count = 0 if head is None else len(head)
    names, notes = select_names(checkpoint.classes, count, recipe.weights)
    for note in notes:
        say(f"Note: {recipe.weights}: {note}")
    return names


def _match_head(
    network: nn.Module,
    checkpoint: Checkpoint,
    names: Sequence[str] | None,
    *,
    classes: Sequence[str],
) -> tuple[dict[str, Tensor], str]:
    """Return the tensors with a head for ``classes``, and a note on what happened to the head.

    A class may also be named by the WordNet id of an ImageNet class.

    Args:
        network: the new network, whose head has random weights.
        checkpoint: the weights file.
        names: the class names of the file's logits, if known.
        classes: the class names of the new head.
    """
    own = network.state_dict()
    tensors = dict(checkpoint.tensors)
    head_names = [name for name in ("fc.weight", "fc.bias") if name in own]
    given = {name: tensors.pop(name) for name in ("fc.weight", "fc.bias") if name in tensors}

    class_of_id = dict(zip(imagenet_ids(), imagenet_classes(), strict=True))
    row_of = {normalize("NFC", name): row for row, name in enumerate(names or ())}
    rows = [
        row_of.get(normalize("NFC", name), row_of.get(class_of_id.get(name, "")))
        for name in classes
    ]
    shapes_fit = all(
        name in given and given[name].shape[1:] == own[name].shape[1:] for name in head_names
    )
    kept = [(i, row) for i, row in enumerate(rows) if row is not None] if shapes_fit else []
    for name in head_names:
        tensors[name] = own[name].clone()
        for i, row in kept:
            tensors[name][i] = given[name][row]

    if not given:
        reason = "it is unclear which head to use" if checkpoint.unclear else "the file has none"
        return tensors, f"the head is new, because {reason}"
    if names is None:
        return tensors, (
            "the head is new, because the file does not name its classes. `resnet convert` with "
            "--classes turns it into a model file, whose head is matched by name"
        )
    if not kept:
        return tensors, f"the head is new, because the file has other classes ({_first_few(names)})"
    if len(kept) == len(classes):
        return tensors, "the head is kept: its rows were matched to these classes by name"
    new = [name for name, row in zip(classes, rows, strict=True) if row is None]
    return tensors, (
        f"{len(kept)} of {len(classes)} rows of the head are kept, matched by name; the rows for "
        f"{_first_few(new)} are new"
    )


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def shareable_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as the model file stores it, without private details.

    For the weights, only the file name is kept, or the URL without user name, password and query.
    The SHA-256 identifies the file.
    """
    weights = recipe.weights
    if weights.startswith(("https://", "http://")):
        parts = urlsplit(weights)
        weights = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    elif Path(weights).is_absolute():
        weights = Path(weights).name
    return {**recipe.model_dump(mode="json"), "weights": weights}
