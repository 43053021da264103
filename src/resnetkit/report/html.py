"""The report: one self-contained HTML file that loads nothing from a network."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ..data.paths import object_url
from ..evaluation.evaluate import Evaluation
from ..evaluation.findings import Finding, doubtful_labels, least_sure, worst_errors
from ..evaluation.metrics import confusion_counts, confusions
from ..models.skeleton import get_skeleton
from ..storage import write_text
from . import charts
from .charts import Line
from .record import Record, kept_epoch, read_record
from .thumbnails import SIDE, explained_thumbnails

# Maximum numbers of images shown. With these, the page takes one or two megabytes.
MAX_ERRORS = 24
MAX_UNSURE = 12
MAX_DOUBTFUL = 24
MAX_CONFUSIONS = 12
COLORS = 8  # for compared runs, in page.css
SUSPECTS = "suspects.html"  # the run's page about its training labels
SPLIT_LABELS = {"train": "training (augmented images)", "val": "validation"}


def write_page(
    path: Path,
    evaluation: Evaluation,
    model_file: str | Path,
    device: str = "auto",
    *,
    answered_by: Sequence[Path] | None = None,
) -> None:
    """Write the report on an evaluation of a model file, which may be in a run folder.

    Args:
        path: the HTML file.
        evaluation: the predictions.
        model_file: the model file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        answered_by: for the out-of-fold predictions of a cross-validation, the model file that
            predicted each image. By default ``model_file`` predicted all of them.
    """
    record = read_record(model_file)
    worst = worst_errors(evaluation, MAX_ERRORS)
    unsure = least_sure(evaluation, MAX_UNSURE)
    doubtful, doubtful_count = doubtful_labels(evaluation, MAX_DOUBTFUL)
    counts = confusion_counts(evaluation.metrics["confusion_matrix"])
    rows = zip(evaluation.metrics["per_class"], _answer_rows(evaluation), strict=True)
    render(
        path,
        "report.html",
        title=_title(record),
        record=record,
        evaluation=evaluation,
        metrics=evaluation.metrics,
        summary=summarize_run(record, evaluation),
        curves=[] if "cross_validation" in evaluation.metrics else curve_panels([record]),
        best=model_row(record),
        rows=[{**metrics, **answers} for metrics, answers in rows],
        matrix=charts.confusion_chart(counts, evaluation.classes),
        confusions=_confusion_rows(evaluation),
        reliability=charts.reliability_chart(evaluation.metrics["calibration"]["bins"]),
        worst=worst,
        unsure=unsure,
        doubtful=doubtful,
        doubtful_count=doubtful_count,
        folds=evaluation.metrics.get("cross_validation"),
        has_suspects=record.is_run and (record.file.parent / SUSPECTS).is_file(),
        thumbnails=_thumbnails(
            answered_by or [record.file] * len(evaluation.samples),
            evaluation,
            findings=worst + unsure + doubtful,
            device=device,
        ),
        recipe=recipe_rows(record),
        environment=environment_rows(record),
        commands=command_rows(record, evaluation),
    )


def _thumbnails(
    answered_by: Sequence[Path], evaluation: Evaluation, findings: Sequence[Finding], device: str
) -> dict[int, tuple[str, str]]:
    """Return the thumbnails of findings, each explained by the model that predicted the image."""
    thumbnails: dict[int, tuple[str, str]] = {}
    by_file: dict[Path, list[Finding]] = {}
    for finding in findings:
        by_file.setdefault(answered_by[finding.index], []).append(finding)
    for file, own in by_file.items():
        thumbnails |= explained_thumbnails(file, evaluation, findings=own, device=device)
    return thumbnails


def render(path: Path, template: str, **values: Any) -> None:
    """Fill in a template and write it; everything except `Markup` is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": format_percent, "short": shorten_path}
    text = environment.get_template(template).render(side=SIDE, **values)
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def format_percent(share: float, digits: int = 1) -> str:
    """Format a share as a percentage; only an exact 1 becomes 100%.

    >>> format_percent(0.98765), format_percent(1.0), format_percent(0.99999)
    ('98.8%', '100%', '>99.9%')
    """
    text = f"{100 * share:.{digits}f}"
    if share < 1 and float(text) >= 100:
        return f">{100 - 10**-digits:.{digits}f}%"
    return f"{float(text):g}%" if float(text) in (0, 100) else f"{text}%"


def format_value(value: Any) -> str:
    """Format the value of a setting as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {format_value(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _title(record: Record) -> str:
    data = record.header.data.get("name")
    return f"{data} · {record.header.architecture}" if data else record.header.architecture


def count_parameters(record: Record) -> int:
    """Return the number of parameters of the model, without loading its weights."""
    header = record.header
    return sum(p.numel() for p in get_skeleton(header.architecture, **header.options).parameters())


def summarize_run(record: Record, evaluation: Evaluation) -> dict[str, Any]:
    """Return the facts of the report's first paragraph: model, training, evaluation."""
    splits = record.header.data.get("parts", {})
    is_selected = record.is_kept or not record.is_run  # False for a model that its run did not keep
    return {
        "parameters": count_parameters(record),
        "trained_on": splits.get("train", {}).get("count"),
        "data": record.header.data.get("name"),
        "epochs": len(record.history) or record.header.recipe.get("epochs"),
        "weights": Path(str(record.header.recipe.get("weights", "none"))).name,
        "classes": len(evaluation.classes),
        "selected_on": evaluation.split == "val" and bool(splits) and is_selected,
    }


def curve_panels(records: Sequence[Record], names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return charts of loss and accuracy by epoch.

    Without ``names``, they show training and validation for a single record. With ``names``, they
    show the validation of each record.
    """
    panels = []
    for what in ("loss", "accuracy"):
        series = []
        for i, record in enumerate(records):
            if not record.history:
                continue
            epochs = [row["epoch"] for row in record.history]
            splits = {"val": "validation"} if names else SPLIT_LABELS
            for split, label in splits.items():
                if f"{split}_{what}" not in record.history[0]:  # no validation
                    continue
                style = f"s{i % COLORS}" + " dashed" * (i >= COLORS) if names else split
                values = [row[f"{split}_{what}"] for row in record.history]
                series.append(Line(names[i] if names else label, style, x=epochs, y=values))
        if series:
            chart = charts.line_chart(series, "epoch", percent=what == "accuracy")
            panels.append({"what": what, "chart": chart, "series": series})
    return panels


def model_row(record: Record) -> dict[str, float] | None:
    """Return the history row of the model's epoch; None if there was no validation."""
    if not record.history or "val_accuracy" not in record.history[0]:
        return None
    if record.is_kept:
        return kept_epoch(record.history)
    epoch = record.header.metrics.get("epoch")
    return next((row for row in record.history if row["epoch"] == epoch), None)


def _answer_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return how often each class was predicted, and its most frequent confusion."""
    counts = confusion_counts(evaluation.metrics["confusion_matrix"])
    wrong = counts - np.diag(np.diag(counts))
    rows = []
    for i, predicted in enumerate(counts.sum(0).tolist()):
        j = int(wrong[i].argmax())
        row = {
            "predicted": predicted,
            "confused_with": evaluation.classes[j],
            "times": int(wrong[i, j]),
        }
        rows.append(row)
    return rows


def _confusion_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    totals = {row["class"]: row["pictures"] for row in evaluation.metrics["per_class"]}
    return [
        {"truth": truth, "answer": answer, "count": count, "share": count / totals[truth]}
        for truth, answer, count in confusions(evaluation.metrics)[:MAX_CONFUSIONS]
    ]


def recipe_rows(record: Record) -> list[tuple[str, str]]:
    """Return the settings that the model was trained with."""
    recipe = dict(record.header.recipe)
    if Path(str(recipe.get("weights"))).is_absolute():
        recipe["weights"] = shorten_path(recipe["weights"])
    return [(key.replace("_", " "), format_value(value)) for key, value in recipe.items()]


def environment_rows(record: Record) -> list[tuple[str, str]]:
    """Return the machine and the versions that the model was trained with."""
    environment = dict(record.environment or {})
    versions = environment.pop("versions", {})
    environment.pop("data", None)
    rows = [(key.replace("_", " "), format_value(value)) for key, value in environment.items()]
    return rows + [(key, str(value)) for key, value in versions.items()]


def shorten_path(path: str | Path, parts: int = 1) -> str:
    """Return a path relative to the current folder, or only its last ``parts`` if it is elsewhere.

    A report may be sent to others, who cannot use the rest of the path and need not see it.
    """
    url = object_url(path)
    if url is not None:
        return url
    absolute = Path(os.path.abspath(path))
    if absolute.is_relative_to(Path.cwd()):
        return absolute.relative_to(Path.cwd()).as_posix()
    return "/".join(absolute.parts[-parts:])


def command_rows(record: Record, evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return (purpose, command) for training, evaluating and predicting; see `shorten_path`."""
    evaluated = evaluation.data or record.evaluated_data or evaluation.samples.root
    is_split = Path(evaluated).name == "split.csv"  # every run has one: show its folder
    data = shlex.quote(shorten_path(evaluated, 2 if is_split else 1))
    file = shlex.quote(shorten_path(record.file, 2 if record.is_run else 1))
    rows = []
    folds = evaluation.metrics.get("cross_validation")
    if folds:
        run_data = shlex.quote(shorten_path(record.data or ""))
        path = record.file.parent.parent / "fold-1" / "recipe.yaml"
        recipe = shlex.quote(shorten_path(path, 3))
        again = f"resnet train {run_data} --folds {len(folds)} --recipe {recipe}"
        return [
            ("cross-validate again", again),
            ("predict with the final network", f"resnet predict {file} IMAGE..."),
        ]
    if record.is_run:
        run_data = shlex.quote(shorten_path(record.data or ""))
        recipe = shlex.quote(shorten_path(record.file.parent / "recipe.yaml", 2))
        again = f"resnet train {run_data} --recipe {recipe}"
        if record.corrections is not None:
            again += f" --corrections {shlex.quote(shorten_path(record.corrections, 2))}"
        rows.append(("train again", again))
    views = evaluation.metrics["views"]
    options = ""
    if views["flip"]:
        options = " --crops 10" if views["crops"] == 10 else " --flip"
    if views["image_size"] != record.header.preprocessing.crop_size:
        options += f" --image-size {views['image_size']}"
    evaluate_command = f"resnet evaluate {file} {data} --split {evaluation.split}{options}"
    rows.append(("evaluate again", evaluate_command))
    rows.append(("predict", f"resnet predict {file} IMAGE..."))
    return rows
