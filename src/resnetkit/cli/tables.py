"""Results -> text for standard output."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text import display_width, pad_to_width, pluralize, printable

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation
    from ..evaluation.explain import Explanation
    from ..export.evaluate import ExportedEvaluation
    from ..training.folds import CrossValidation
    from ..training.lr_finder import LearningRates
    from ..training.run import Run
    from ..training.seeds import SeedSweep


def evaluation_table(result: Evaluation | ExportedEvaluation) -> str:
    """Return accuracy; precision, recall and F1 per class; and the most frequent confusions."""
    from ..evaluation.metrics import confusions

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
    mistakes = confusions(metrics)[:5]
    if mistakes:
        text = "; ".join(f"{truth} mistaken for {answer} {n}x" for truth, answer, n in mistakes)
        lines += ["", f"most frequent mistakes: {printable(text)}"]
    return "\n".join(lines)


def _secondary_metrics(metrics: dict[str, Any]) -> str:
    top5 = f"top-5 {metrics['top5_accuracy']:.2%}, " if "top5_accuracy" in metrics else ""
    balanced = metrics["balanced_accuracy"]
    ece = metrics["calibration"]["ece"]
    return f"{top5}balanced accuracy {balanced:.2%}, calibration error {ece:.2%}"


def _comparison_lines(metrics: dict[str, Any]) -> list[str]:
    """Return lines about the weights' published accuracies and the effect of a temperature."""
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
    """Return the result of a run, its folder, and the commands to run next."""
    metrics = run.metrics
    file = shlex.quote(str(run.model))
    data = shlex.quote(_relative_data_path(run))
    if metrics["split"] is None:
        return (
            f"\ntrained on all images for {pluralize(len(run.history), 'epoch')} in "
            f"{run.train_seconds:.0f} s from {_initial_weights(run)}; no images were left "
            f"to measure the accuracy\n{_suspects_line(run)}"
            f"everything is in {run.folder}\n\nnext:\n"
            f"  resnet evaluate {file} OTHER_PHOTOS\n"
            f"  resnet predict {file} IMAGE..."
        )
    correct = metrics["pictures"] - metrics["errors"]
    low, high = metrics["accuracy_interval"]
    return (
        f"\nvalidation accuracy {metrics['accuracy']:.2%} "
        f"({correct} of {metrics['pictures']} images), 95% interval {low:.2%} to {high:.2%}\n"
        f"kept epoch {run.best_epoch} of {len(run.history)}; {run.train_seconds:.0f} s of training "
        f"from {_initial_weights(run)}\n"
        f"{_suspects_line(run)}everything is in {run.folder}\n\nnext:\n"
        f"  resnet evaluate {file} {data} --split val\n"
        f"  resnet predict {file} IMAGE..."
    )


def _suspects_line(run: Run) -> str:
    """Return the line about labels that look wrong; empty if there was no search for them."""
    from ..training.run import RunFolder

    file = RunFolder(run.folder).suspects
    if not file.is_file():
        return ""
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        count = sum(1 for _ in csv.reader(lines)) - 1
    if not count:
        return "no training label looks wrong\n"
    verb = "looks" if count == 1 else "look"
    page = file.with_suffix(".html")
    return f"{pluralize(count, 'training label')} {verb} wrong: {file}, shown in {page}\n"


def plot_learning_rates(result: LearningRates, out: Path | None) -> str:
    """Plot loss against learning rate and return the suggested rate as text.

    Args:
        result: the result of the learning-rate finder.
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
    """Return one line per seed, then the mean and standard deviation."""
    lines = ["", "seed  validation accuracy  kept epoch"]
    for run in sweep.runs:
        lines.append(
            f"{run.recipe.seed:4}  {run.metrics['accuracy']:19.2%}  "
            f"{run.best_epoch:3} of {len(run.history)}"
        )
    lines += ["", f"mean {sweep.mean:.2%}, standard deviation {sweep.deviation:.2%}"]
    return "\n".join([*lines, f"everything is in {sweep.folder}"])


def folds_table(found: CrossValidation) -> str:
    """Return one line per fold, the out-of-fold accuracy, and the commands to run next."""
    summary = found.summary
    file = shlex.quote(str(found.final.model))
    low, high = summary["accuracy_interval"]
    lines = ["", "fold  images  accuracy"]
    lines += [
        f"{row['fold']:4}  {row['pictures']:6,}  {row['accuracy']:8.2%}"
        for row in summary["per_fold"]
    ]
    copies = ""
    if summary["groups"] < summary["pictures"]:
        copies = f" (counting copies once: {summary['independent_images']:,.0f} images)"
    lines += [
        "",
        f"out-of-fold accuracy {summary['accuracy']:.2%} "
        f"({summary['pictures'] - summary['errors']:,} of {summary['pictures']:,} images), 95% "
        f"interval {low:.2%} to {high:.2%}{copies}",
        f"final network: trained on all {summary['pictures']:,} images for "
        f"{pluralize(summary['epochs'], 'epoch')}, like the folds",
    ]
    target = "OTHER_PHOTOS"
    if "test" in summary:
        test = summary["test"]
        low, high = test["accuracy_interval"]
        lines.append(
            f"its test accuracy {test['accuracy']:.2%} ({test['pictures'] - test['errors']:,} of "
            f"{test['pictures']:,} images), 95% interval {low:.2%} to {high:.2%}"
        )
        target = f"{shlex.quote(_relative_data_path(found.final))} --split test"
    lines += [
        f"predictions and report.html are in {found.folder}",
        "",
        "next:",
        f"  resnet evaluate {file} {target}",
        f"  resnet predict {file} IMAGE...",
    ]
    return "\n".join(lines)


def _initial_weights(run: Run) -> str:
    name = Path(run.recipe.weights).name
    return "random weights" if name == "none" else f"weights of {printable(name)}"


def _relative_data_path(run: Run) -> str:
    """Return the path to the data with the run's labels, relative if in the current folder."""
    from ..data.paths import object_url
    from ..report.record import read_record

    data = read_record(run.model).evaluated_data
    assert data is not None
    if object_url(data) is not None:
        return data
    path = Path(data)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _matching_models(pattern: str | None) -> list[str]:
    from ..errors import RecipeError
    from ..models import list_models

    names = list_models(include=pattern)
    if not names:
        raise RecipeError(
            f"No model matches {pattern!r}. The models are {', '.join(list_models())}"
        )
    return names


def _default_image_size(name: str) -> int:
    return 32 if name.startswith("cifar_") else 224


def model_table(pattern: str | None) -> str:
    """Return the names, parameters and multiply-adds of architectures that match a pattern.

    Raises:
        RecipeError: no architecture matches.
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

    The accuracies are on ImageNet, unless the line names another dataset.

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
        RecipeError: the network or an option is unknown.
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
