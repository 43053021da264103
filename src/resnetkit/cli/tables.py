"""Results -> text for standard output."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text import display_width, pad_to_width, printable

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation
    from ..evaluation.explain import Explanation
    from ..training.lr_finder import LearningRates
    from ..training.run import Run
    from ..training.seeds import SeedSweep


def evaluation_table(result: Evaluation) -> str:
    """Return accuracy; precision, recall and F1 per class; and the most frequent confusions."""
    from ..evaluation.evaluate import confusions

    metrics = result.metrics
    correct = metrics["pictures"] - metrics["errors"]
    width = max(7, *map(display_width, result.classes))
    low, high = metrics["accuracy_interval"]
    lines = [
        f"{result.split}: accuracy {metrics['accuracy']:.2%} "
        f"({correct} of {metrics['pictures']} images), loss {metrics['loss']:.4f}",
        f"95% interval {low:.2%} to {high:.2%}, {_secondary_metrics(metrics)}",
        *_comparison_lines(metrics),
        "",
        f"{'class':{width}}  precision   recall       F1    images",
    ]
    for row in [*metrics["per_class"], {"class": "average", **metrics["macro"]}]:
        images = row.get("pictures", metrics["pictures"])
        lines.append(
            f"{pad_to_width(row['class'], width)}  {row['precision']:9.2%}  {row['recall']:7.2%}  "
            f"{row['f1']:7.2%}  {images:8}"
        )
    mistakes = confusions(result)[:5]
    if mistakes:
        text = "; ".join(f"{truth} taken for {answer} {n}x" for truth, answer, n in mistakes)
        lines += ["", f"most frequent mistakes: {printable(text)}"]
    return "\n".join(lines)


def _secondary_metrics(metrics: dict[str, Any]) -> str:
    top5 = f"top-5 {metrics['top5_accuracy']:.2%}, " if "top5_accuracy" in metrics else ""
    balanced = metrics["balanced_accuracy"]
    ece = metrics["calibration"]["ece"]
    return f"{top5}balanced accuracy {balanced:.2%}, calibration error {ece:.2%}"


def _comparison_lines(metrics: dict[str, Any]) -> list[str]:
    """Return the published accuracies of these weights, and the effect of a temperature."""
    lines = []
    if "published" in metrics:
        published = metrics["published"]
        lines += [
            "",
            f"{'':12}  {published['data'] + ', published':>22}  {'measured here':>13}",
            f"{'top-1':12}  {published['accuracy']:22.2%}  {metrics['accuracy']:13.2%}",
            f"{'top-5':12}  {published['top5_accuracy']:22.2%}  {metrics['top5_accuracy']:13.2%}",
        ]
    if "temperature" in metrics:
        fit = metrics["temperature"]
        lines.append(
            f"temperature {fit['value']:.3f}, fitted on {fit['pictures']} images of "
            f"{fit['fitted_on']}: calibration error {fit['ece_before']:.2%} -> "
            f"{fit['ece_after']:.2%}, loss {fit['loss_before']:.4f} -> {fit['loss_after']:.4f}"
        )
    return lines


def explanation_line(explanation: Explanation, file: Path | None) -> str:
    """Return a line with the image, its predicted and explained class, and the overlay's file."""
    source = printable(str(explanation.source))
    if file is None:
        return f"{source}  ERROR  {printable(explanation.error or '')}"
    answer = f"{printable(explanation.answer)}  {explanation.probability:.2%}"
    if explanation.target != explanation.answer:
        answer += f", explained: {printable(explanation.target)}"
    return f"{source}  {answer}  {printable(str(file))}"


def closing_lines(run: Run) -> str:
    """Return the result of a run, its folder, and the commands to type next."""
    metrics = run.metrics
    correct = metrics["pictures"] - metrics["errors"]
    file = shlex.quote(str(run.model))
    data = shlex.quote(_relative_data_path(run))
    return (
        f"\nvalidation accuracy {metrics['accuracy']:.2%} "
        f"({correct} of {metrics['pictures']} images) in epoch {run.best_epoch}, the best of "
        f"{len(run.history)}; {run.train_seconds:.0f} s of training from {_initial_weights(run)}\n"
        f"everything is in {run.folder}\n\nnext:\n"
        f"  resnet evaluate {file} {data} --split val\n"
        f"  resnet predict {file} IMAGE..."
    )


def plot_learning_rates(result: LearningRates, out: Path | None) -> str:
    """Plot loss over learning rate and return the suggested rate as text.

    Args:
        result: what the finder measured.
        out: folder for ``learning_rates.png``; None is the current folder.
    """
    from ..report.plots import save_learning_rates
    from ..storage import make_output

    path = (out or Path()) / "learning_rates.png"
    if not path.parent.exists():
        make_output(path.parent)
    save_learning_rates(result.rates, result.losses, result.suggestion, path)
    return (
        f"suggested: --lr {result.suggestion:.1g} (a third of the rate with the lowest loss)\n"
        f"the curve is in {path}"
    )


def seeds_table(sweep: SeedSweep) -> str:
    """Return a line per seed, then the mean and standard deviation."""
    lines = ["", "seed  validation accuracy  best epoch"]
    for run in sweep.runs:
        lines.append(
            f"{run.recipe.seed:4}  {run.metrics['accuracy']:19.2%}  "
            f"{run.best_epoch:3} of {len(run.history)}"
        )
    lines += ["", f"mean {sweep.mean:.2%}, standard deviation {sweep.deviation:.2%}"]
    return "\n".join([*lines, f"everything is in {sweep.folder}"])


def _initial_weights(run: Run) -> str:
    name = Path(run.recipe.weights).name
    return "random weights" if name == "none" else f"weights of {printable(name)}"


def _relative_data_path(run: Run) -> str:
    """Return the path of the run's data, relative if it is below the current folder."""
    from ..training.run import recorded_data

    path = Path(recorded_data(run.folder))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _matching_models(pattern: str | None) -> list[str]:
    from ..errors import RecipeError
    from ..models import list_models

    names = list_models(include=pattern)
    if not names:
        raise RecipeError(f"No model matches {pattern!r}. All: {', '.join(list_models())}")
    return names


def _default_image_size(name: str) -> int:
    return 32 if name.startswith("cifar_") else 224


def model_table(pattern: str | None) -> str:
    """Return the names, parameters and multiply-adds of architectures that match a pattern.

    Raises:
        RecipeError: none matches.
    """
    from ..models import summarize
    from ..models.skeleton import get_skeleton

    lines = [f"{'model':20}  {'parameters':>12}  {'multiply-adds':>13}  at"]
    for name in _matching_models(pattern):
        size = _default_image_size(name)
        summary = summarize(get_skeleton(name), size)
        numbers = f"{summary.parameters:12,}  {summary.macs / 1e9:11.3f} G"
        lines.append(f"{name:20}  {numbers}  {size} px")
    return "\n".join(lines)


def weights_table(pattern: str | None) -> str:
    """Return the published weights of matching architectures, with their accuracies.

    The accuracies are on ImageNet; other datasets are named.

    Raises:
        RecipeError: no architecture matches.
    """
    from ..models import list_weights

    lines = [f"{'model':18}  {'weights':18}  {'top-1':>6}  {'top-5':>6}  {'MB':>6}"]
    for name in _matching_models(pattern):
        for member in list_weights(name).get(name, []):
            ((images, accuracy),) = member.meta["_metrics"].items()
            default = " (default)" if member is type(member)["DEFAULT"] else ""
            elsewhere = f" (on {images})" if images != "ImageNet-1K" else ""
            lines.append(
                f"{name:18}  {member.name:18}  {accuracy['acc@1']:6.2f}  {accuracy['acc@5']:6.2f}  "
                f"{member.meta['_file_size']:6.1f}{default}{elsewhere}"
            )
    if len(lines) == 1:
        return "These models have no published weights."
    return "\n".join(lines)


def summary_table(name: str, image_size: int | None, options: dict[str, Any]) -> str:
    """Return the stages of a network, and its depth as the paper counts it.

    Raises:
        RecipeError: an unknown network or option.
    """
    from ..errors import RecipeError
    from ..models import summarize
    from ..models.skeleton import get_skeleton

    size = image_size or _default_image_size(name)
    try:
        summary = summarize(get_skeleton(name, **options), size)
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error)) from error
    counts = " + ".join(str(stage.layers) for stage in summary.stages)
    return f"{name} at {size} px: {counts} = {summary.layers} layers\n\n{summary}"
