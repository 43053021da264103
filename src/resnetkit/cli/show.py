"""Results -> text on standard output."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import columns, padded, printable

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation
    from ..evaluation.explain import Explanation
    from ..training.lr_finder import LearningRates
    from ..training.run import Run
    from ..training.seeds import SeedSweep


def evaluation_table(found: Evaluation) -> str:
    """Accuracy, then precision, recall and F1 of each class, then what was mistaken for what."""
    from ..evaluation.evaluate import confusions

    metrics = found.metrics
    correct = metrics["pictures"] - metrics["errors"]
    width = max(7, *map(columns, found.classes))
    low, high = metrics["accuracy_interval"]
    lines = [
        f"{found.split}: accuracy {metrics['accuracy']:.2%} "
        f"({correct} of {metrics['pictures']} pictures), loss {metrics['loss']:.4f}",
        f"95% interval {low:.2%} to {high:.2%}, {_more_numbers(metrics)}",
        *_comparisons(metrics),
        "",
        f"{'class':{width}}  precision   recall       F1  pictures",
    ]
    for row in [*metrics["per_class"], {"class": "average", **metrics["macro"]}]:
        images = row.get("pictures", metrics["pictures"])
        lines.append(
            f"{padded(row['class'], width)}  {row['precision']:9.2%}  {row['recall']:7.2%}  "
            f"{row['f1']:7.2%}  {images:8}"
        )
    wrong = confusions(found)[:5]
    if wrong:
        text = "; ".join(f"{truth} taken for {answer} {n}x" for truth, answer, n in wrong)
        lines += ["", f"most frequent mistakes: {printable(text)}"]
    return "\n".join(lines)


def _more_numbers(metrics: dict[str, Any]) -> str:
    top5 = f"top-5 {metrics['top5_accuracy']:.2%}, " if "top5_accuracy" in metrics else ""
    balanced, ece = metrics["balanced_accuracy"], metrics["calibration"]["ece"]
    return f"{top5}balanced accuracy {balanced:.2%}, calibration error {ece:.2%}"


def _comparisons(metrics: dict[str, Any]) -> list[str]:
    """What was published of these weights, and what a temperature would change."""
    lines = []
    if "published" in metrics:
        then = metrics["published"]
        lines += [
            "",
            f"{'':12}  {then['data'] + ', published':>22}  {'measured here':>13}",
            f"{'top-1':12}  {then['accuracy']:22.2%}  {metrics['accuracy']:13.2%}",
            f"{'top-5':12}  {then['top5_accuracy']:22.2%}  {metrics['top5_accuracy']:13.2%}",
        ]
    if "temperature" in metrics:
        fit = metrics["temperature"]
        lines.append(
            f"temperature {fit['value']:.3f}, fitted on {fit['pictures']} pictures of "
            f"{fit['fitted_on']}: calibration error {fit['ece_before']:.2%} -> "
            f"{fit['ece_after']:.2%}, loss {fit['loss_before']:.4f} -> {fit['loss_after']:.4f}"
        )
    return lines


def explanation_line(item: Explanation, file: Path | None) -> str:
    """What was explained, and in which file."""
    source = printable(str(item.source))
    if file is None:
        return f"{source}  ERROR  {printable(item.error or '')}"
    about = "" if item.target == item.answer else f", explained: {printable(item.target)}"
    said = f"{printable(item.answer)}  {item.probability:.2%}{about}"
    return f"{source}  {said}  {printable(str(file))}"


def closing_lines(run: Run) -> str:
    """What was reached, where it lies, and what to type next."""
    metrics = run.metrics
    correct = metrics["pictures"] - metrics["errors"]
    file = shlex.quote(str(run.model))
    data = shlex.quote(recorded_data_of(run))
    return (
        f"\nvalidation accuracy {metrics['accuracy']:.2%} "
        f"({correct} of {metrics['pictures']} pictures) in epoch {run.best_epoch}, the best of "
        f"{len(run.history)}; {run.train_seconds:.0f} s of training from {_origin(run)}\n"
        f"everything is in {run.folder}\n\nnext:\n"
        f"  resnet evaluate {file} {data} --split val\n"
        f"  resnet predict {file} PICTURE..."
    )


def show_learning_rates(found: LearningRates, out: Path | None) -> str:
    """Draw the losses over the rates into the folder ``out`` (by default this one)."""
    from ..report.plots import save_learning_rates
    from ..storage import make_output

    path = (out or Path()) / "learning_rates.png"
    if not path.parent.exists():
        make_output(path.parent)
    save_learning_rates(found.rates, found.losses, found.suggestion, path)
    return (
        f"suggested: --lr {found.suggestion:.1g} (a third of the rate at which the loss was lowest)"
        f"\nthe curve is in {path}"
    )


def seeds_table(found: SeedSweep) -> str:
    """A line for each seed, then their mean and standard deviation."""
    lines = ["", "seed  validation accuracy  best epoch"]
    for run in found.runs:
        lines.append(
            f"{run.recipe.seed:4}  {run.metrics['accuracy']:19.2%}  "
            f"{run.best_epoch:3} of {len(run.history)}"
        )
    lines += ["", f"mean {found.mean:.2%}, standard deviation {found.deviation:.2%}"]
    return "\n".join([*lines, f"everything is in {found.folder}"])


def _origin(run: Run) -> str:
    name = Path(run.recipe.weights).name
    return "random weights" if name == "none" else f"weights of {printable(name)}"


def recorded_data_of(run: Run) -> str:
    """The run's data, as short as it can be written from here."""
    from ..training.run import recorded_data

    path = Path(recorded_data(run.folder))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _named(pattern: str | None) -> list[str]:
    from ..errors import RecipeError
    from ..models import list_models

    names = list_models(include=pattern)
    if not names:
        raise RecipeError(f"No model matches {pattern!r}. All: {', '.join(list_models())}")
    return names


def _usual_size(name: str) -> int:
    return 32 if name.startswith("cifar_") else 224


def model_table(pattern: str | None) -> str:
    """Name, parameters and multiply-adds of the architectures that match a shell pattern."""
    from ..models import summarize
    from ..models.registry import get_skeleton

    lines = [f"{'model':20}  {'parameters':>12}  {'multiply-adds':>13}  at"]
    for name in _named(pattern):
        found = summarize(get_skeleton(name), _usual_size(name))
        numbers = f"{found.parameters:12,}  {found.macs / 1e9:11.3f} G"
        lines.append(f"{name:20}  {numbers}  {_usual_size(name)} px")
    return "\n".join(lines)


def weights_table(pattern: str | None) -> str:
    """The published weights of the architectures that match, with their ImageNet accuracies."""
    from ..models import list_weights

    lines = [f"{'model':18}  {'weights':18}  {'top-1':>6}  {'top-5':>6}  {'MB':>6}"]
    for name in _named(pattern):
        for member in list_weights(name).get(name, []):
            measured = member.meta["_metrics"]["ImageNet-1K"]
            default = " (default)" if member is type(member)["DEFAULT"] else ""
            lines.append(
                f"{name:18}  {member.name:18}  {measured['acc@1']:6.2f}  {measured['acc@5']:6.2f}  "
                f"{member.meta['_file_size']:6.1f}{default}"
            )
    if len(lines) == 1:
        return "There are no published weights of these models."
    return "\n".join(lines)


def summary_table(name: str, image_size: int | None, options: dict[str, Any]) -> str:
    """The stages of a network, and its depth as the paper counts it."""
    from ..errors import RecipeError
    from ..models import summarize
    from ..models.registry import get_skeleton

    size = image_size or _usual_size(name)
    try:
        found = summarize(get_skeleton(name, **options), size)
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error)) from error
    counts = " + ".join(str(stage.layers) for stage in found.stages)
    return f"{name} at {size} px: {counts} = {found.layers} layers\n\n{found}"
