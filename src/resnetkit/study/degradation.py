"""Section 4.2 and figure 6: plain nets get worse with depth, already in training; residual nets
do not. That is no overfitting, which would lower the training error; it is the degradation."""

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
    """``"56,20"`` -> ``[20, 56]``.

    Raises:
        RecipeError: something else than numbers with commas between them.
    """
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise RecipeError(f"--depths takes numbers, as in 20,56; got {text!r}") from None


def nets(depths: Sequence[int]) -> list[Net]:
    """The plain and the residual net of each depth; plain ones first.

    Raises:
        RecipeError: the paper has no nets of such a depth.
    """
    known = list_models("cifar_*")
    wanted = [f"{family}{depth}" for family in FAMILIES for depth in depths]
    missing = [name for name in wanted if name not in known]
    if missing or not depths:
        there = sorted(int(name.removeprefix("cifar_plain")) for name in known if "plain" in name)
        raise RecipeError(
            f"--depths takes some of {', '.join(map(str, there))}; got "
            f"{', '.join(map(str, depths)) or 'none'}"
        )
    return [Net(name.removeprefix("cifar_"), name) for name in wanted]


def groups(depths: Sequence[int]) -> list[list[str]]:
    """Names of the plain nets, and of the residual ones: the two panels of figure 6."""
    return [[f"{family.removeprefix('cifar_')}{depth}" for depth in depths] for family in FAMILIES]


def table6(comparison: Comparison, outcomes: Sequence[Outcome], device: str) -> Table | None:
    """Test errors beside those of table 6; None unless the pictures are the original CIFAR-10."""
    if not cifar10.is_original(comparison.data):
        return None
    rows = []
    for one in outcomes:
        found = evaluate(one.folder / "last.safetensors", comparison.data, "test", device=device)
        depth = one.net.removeprefix("resnet")
        printed = published.TABLE6_ERRORS.get(int(depth)) if depth.isdigit() else None
        error = 100 * (1 - found.metrics["accuracy"])
        rows.append(Row(f"{one.net}, seed {one.seed}", error, printed))
    return Table("Table 6: test error in %, CIFAR-10", tuple(rows), digits=2)


def response_deviations(comparison: Comparison, outcomes: Sequence[Outcome]) -> list[Responses]:
    """Figure 7 of the trained nets of the first seed, on one batch of training pictures."""
    assert comparison.recipe.image_size is not None
    images, _ = training_tensors(comparison.data, comparison.recipe.image_size, most=128)
    found = []
    for one in outcomes:
        if one.seed == comparison.seeds[0]:
            network, _ = modelfile.read(one.folder / "last.safetensors")
            found.append(responses(one.net, network, images))
    return found


def to_dict(
    comparison: Comparison,
    outcomes: Sequence[Outcome],
    deviations: Sequence[Responses],
    published_beside: Table | None,
) -> dict[str, Any]:
    """Everything that was measured, as JSON."""
    return {
        **runs.to_dict(comparison, outcomes),
        "responses": {one.net: list(one.values) for one in deviations},
        "table6": published_beside and published_beside.to_dict(),
    }
