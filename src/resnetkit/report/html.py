"""The report: one HTML file with everything in it, which asks nothing of any network."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ..evaluation.evaluate import Evaluation, confusions
from ..evaluation.findings import doubtful_labels, least_sure, worst_errors
from ..evaluation.metrics import counts_of
from ..models.registry import get_skeleton
from ..storage import write_text
from . import charts
from .charts import Line
from .record import Record, best_epoch, read
from .thumbnails import SIDE, thumbnails

WORST, UNSURE, DOUBTFUL = 24, 12, 24
"""How many pictures are shown at most: with these the page has one or two megabytes."""
MOST_CONFUSIONS = 12


def write(path: Path, found: Evaluation, model_file: str | Path, device: str = "auto") -> None:
    """Write the report on an evaluation of a model file, which may lie in the folder of a run."""
    record = read(model_file)
    worst, unsure = worst_errors(found, WORST), least_sure(found, UNSURE)
    doubtful, doubts = doubtful_labels(found, DOUBTFUL)
    shown = thumbnails(record.file, found, worst + unsure + doubtful, device)
    rows = found.metrics["per_class"]
    render(
        path,
        "report.html",
        title=_title(record),
        record=record,
        found=found,
        metrics=found.metrics,
        story=story(record, found),
        curves=curves([record]),
        best=best_row(record),
        rows=[{**row, **extra} for row, extra in zip(rows, _predicted(found), strict=True)],
        matrix=charts.matrix(counts_of(found.metrics["confusion_matrix"]), found.classes),
        confusions=_confusions(found),
        reliability=charts.reliability(found.metrics["calibration"]["bins"]),
        worst=worst,
        unsure=unsure,
        doubtful=doubtful,
        doubts=doubts,
        shown=shown,
        recipe=recipe_rows(record),
        environment=environment_rows(record),
        commands=commands(record, found),
    )


def render(path: Path, template: str, **values: Any) -> None:
    """Fill in one of the templates; everything that is no `Markup` is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "plain": plain, "command": shlex.quote}
    text = environment.get_template(template).render(side=SIDE, **values)
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def percent(share: float, digits: int = 1) -> str:
    """A share as a person reads it.

    >>> percent(0.98765), percent(1.0), percent(0.99999)
    ('98.8 %', '100 %', '>99.9 %')
    """
    text = f"{100 * share:.{digits}f}"
    if share < 1 and float(text) >= 100:
        return f">{100 - 10**-digits:.{digits}f} %"
    return f"{float(text):g} %" if float(text) in (0, 100) else f"{text} %"


def plain(value: Any) -> str:
    """A setting's value as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _title(record: Record) -> str:
    data = record.header.data.get("name")
    return f"{data} · {record.header.architecture}" if data else record.header.architecture


def parameters(record: Record) -> int:
    """Of the network, counted on a skeleton."""
    header = record.header
    return sum(p.numel() for p in get_skeleton(header.architecture, **header.options).parameters())


def story(record: Record, found: Evaluation) -> dict[str, Any]:
    """What was trained on what and measured on what, in numbers."""
    parts = record.header.data.get("parts", {})
    return {
        "parameters": parameters(record),
        "trained_on": parts.get("train", {}).get("count"),
        "data": record.header.data.get("name"),
        "epochs": len(record.history) or record.header.recipe.get("epochs"),
        "weights": Path(str(record.header.recipe.get("weights", "none"))).name,
        "classes": len(found.classes),
        "chosen_on": found.split == "val" and bool(parts),
        "file": record.file.name,
    }


def curves(records: Sequence[Record], names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Loss and accuracy by epoch: of one run for both parts; of several, which have these names,
    for validation alone."""
    panels = []
    for what in ("loss", "accuracy"):
        series = []
        for i, record in enumerate(records):
            if not record.history:
                continue
            epochs = [row["epoch"] for row in record.history]
            kinds = {"val": "validation"} if names else PARTS
            for part, label in kinds.items():
                style = f"s{i}" if names else part
                values = [row[f"{part}_{what}"] for row in record.history]
                name = names[i] if names else label
                series.append(Line(name, style, epochs, values))
        if series:
            chart = charts.lines(series, "epoch", share=what == "accuracy")
            panels.append({"what": what, "chart": chart, "series": series})
    return panels


PARTS = {"train": "training (augmented pictures)", "val": "validation"}


def best_row(record: Record) -> dict[str, float] | None:
    """The epoch whose model was kept."""
    if not record.history:
        return None
    return best_epoch(record.history)


def _predicted(found: Evaluation) -> list[dict[str, Any]]:
    """For each class: how often it was the answer, and what it was mistaken for most."""
    matrix = counts_of(found.metrics["confusion_matrix"])
    wrong = matrix - np.diag(np.diag(matrix))
    rows = []
    for i, answered in enumerate(matrix.sum(0).tolist()):
        j = int(wrong[i].argmax())
        count = int(wrong[i, j])
        rows.append({"answered": answered, "taken_for": found.classes[j], "times": count})
    return rows


def _confusions(found: Evaluation) -> list[dict[str, Any]]:
    totals = {row["class"]: row["pictures"] for row in found.metrics["per_class"]}
    return [
        {"truth": truth, "answer": answer, "count": count, "share": count / totals[truth]}
        for truth, answer, count in confusions(found)[:MOST_CONFUSIONS]
    ]


def recipe_rows(record: Record) -> list[tuple[str, str]]:
    """The settings that the model was trained with."""
    recipe = dict(record.header.recipe)
    if Path(str(recipe.get("weights"))).is_absolute():
        recipe["weights"] = from_here(recipe["weights"])
    return [(key.replace("_", " "), plain(value)) for key, value in recipe.items()]


def environment_rows(record: Record) -> list[tuple[str, str]]:
    """The machine and the versions."""
    known = dict(record.environment or {})
    versions = known.pop("versions", {})
    known.pop("data", None)
    rows = [(key.replace("_", " "), plain(value)) for key, value in known.items()]
    return rows + [(key, str(value)) for key, value in versions.items()]


def from_here(path: str | Path, parts: int = 1) -> str:
    """A path as it is typed in this folder. Of what lies elsewhere only the last ``parts``: where
    on a machine it lies tells others nothing that they could use, and more than they need."""
    absolute = Path(os.path.abspath(path))
    if absolute.is_relative_to(Path.cwd()):
        return absolute.relative_to(Path.cwd()).as_posix()
    return "/".join(absolute.parts[-parts:])


def _data(record: Record, found: Evaluation) -> str:
    """What was measured on: what the run was begun with, or something else."""
    begun = Path(record.data) if record.data else None
    root = Path(found.samples.root).absolute()
    return str(begun if begun and root in (begun, begun.parent) else root)


def commands(record: Record, found: Evaluation) -> list[tuple[str, str]]:
    """(what for, what to type), with paths as `from_here`."""
    data, begun = (
        shlex.quote(from_here(path)) for path in (_data(record, found), record.data or "")
    )
    file = shlex.quote(from_here(record.file, 2 if record.is_run else 1))
    recipe = shlex.quote(from_here(record.file.parent / "recipe.yaml", 2))
    again = [("train again", f"resnet train {begun} --recipe {recipe}")] if record.is_run else []
    views = found.metrics["views"]
    more = "" if not views["flip"] else " --crops 10" if views["crops"] == 10 else " --flip"
    if views["image_size"] != record.header.preprocessing.crop_size:
        more += f" --image-size {views['image_size']}"
    measure = f"resnet evaluate {file} {data} --split {found.split}{more}"
    return [*again, ("measure again", measure), ("use it", f"resnet predict {file} PICTURE...")]
