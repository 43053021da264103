"""Section 4.2 and figure 6: plain nets get worse with depth; residual nets do not.

The training error itself rises, so this is degradation rather than overfitting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import RecipeError
from ..evaluation.evaluate import evaluate
from ..models import list_models
from ..models.weights import modelfile
from . import cifar10, published, runs
from .gradients import Responses, responses
from .images import training_tensors
from .runs import Comparison, Net, Outcome
from .table import Row, Table

FAMILIES = ("cifar_plain", "cifar_resnet")


def parse_depths(text: str) -> list[int]:
    """Parse a comma-separated list: ``"56,20"`` -> ``[20, 56]``.

    Raises:
        RecipeError: an item is not a number.
    """
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise RecipeError(f"--depths takes numbers, as in 20,56; got {text!r}") from None


def nets(depths: Sequence[int]) -> list[Net]:
    """Return the plain and the residual net of each depth, plain ones first.

    Raises:
        RecipeError: the paper has no nets of one of these depths, or no depth was given.
    """
    known = list_models("cifar_*")
    wanted = [f"{family}{depth}" for family in FAMILIES for depth in depths]
    missing = [name for name in wanted if name not in known]
    if missing or not depths:
        valid_depths = sorted(
            int(name.removeprefix("cifar_plain")) for name in known if "plain" in name
        )
        raise RecipeError(
            f"--depths takes one or more of {', '.join(map(str, valid_depths))}; got "
            f"{', '.join(map(str, depths)) or 'none'}"
        )
    return [Net(name.removeprefix("cifar_"), name) for name in wanted]


def groups(depths: Sequence[int]) -> list[list[str]]:
    """Return the names of the plain and the residual nets: the two panels of figure 6."""
    return [[f"{family.removeprefix('cifar_')}{depth}" for depth in depths] for family in FAMILIES]


def table6(comparison: Comparison, outcomes: Sequence[Outcome], device: str) -> Table | None:
    """Return test errors next to those in table 6; None if the data is not original CIFAR-10."""
    if not cifar10.is_original(comparison.data):
        return None
    rows = []
    for outcome in outcomes:
        model_file = outcome.folder / "last.safetensors"
        result = evaluate(model_file, comparison.data, split="test", device=device)
        depth = outcome.net.removeprefix("resnet")
        printed = published.TABLE6_ERRORS.get(int(depth)) if depth.isdigit() else None
        error = 100 * (1 - result.metrics["accuracy"])
        rows.append(Row(f"{outcome.net}, seed {outcome.seed}", error, published=printed))
    return Table("Table 6: test error in %, CIFAR-10", tuple(rows), digits=2)


def response_deviations(comparison: Comparison, outcomes: Sequence[Outcome]) -> list[Responses]:
    """Measure figure 7 for the first seed's trained nets, on one batch of training images."""
    images, _ = training_tensors(comparison.data, comparison.recipe.preprocessing(), most=128)
    deviations = []
    for outcome in outcomes:
        if outcome.seed == comparison.seeds[0]:
            network, _ = modelfile.read(outcome.folder / "last.safetensors")
            deviations.append(responses(outcome.net, network, images=images))
    return deviations


def to_dict(
    comparison: Comparison,
    outcomes: Sequence[Outcome],
    deviations: Sequence[Responses],
    table6: Table | None,
) -> dict[str, Any]:
    """Return all measurements as JSON data."""
    return {
        **runs.to_dict(comparison, outcomes),
        "responses": {each.net: list(each.values) for each in deviations},
        "table6": table6 and table6.to_dict(),
    }
