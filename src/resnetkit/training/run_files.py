"""The files that a run writes to its folder at the start, after each epoch, and at the end."""

from __future__ import annotations

import os
from typing import Any

from ..calibration import has_room
from ..data.dataset import Images
from ..data.paths import absolute
from ..errors import OutputError
from ..evaluation.calibrate import write_calibration
from ..evaluation.evaluate import evaluate_split
from ..evaluation.metrics import confusion_counts
from ..models.weights import modelfile
from ..models.weights.modelfile import Header
from ..progress import say
from ..report import html, plots
from ..runtime import environment
from .checkpoint import list_generations, lock_run
from .initial_weights import shareable_recipe
from .input_figures import draw_inputs
from .run import FIRST_FILE, Run, RunFolder
from .session import Session
from .suspects import write_suspects

MAX_DIGESTS = 1_500_000
"""Maximum number of digests in a model file. At 22 bytes each, they take 31 of the 64 MiB that a
header may have."""


def begin_run(run: RunFolder, session: Session, data: str | os.PathLike[str]) -> RunFolder:
    """Claim the folder and write what is known before the first step.

    This is the environment, recipe, classes, split, and figures of the inputs as the network sees
    them.

    Returns:
        The folder that was claimed. Its number may differ if another run claimed the folder first.

    Raises:
        OutputError: the folder cannot be created, or another run is writing to it.
    """
    run.claim()
    with lock_run(run.path):
        if list_generations(run.path / "state"):
            raise OutputError(
                f"Another run has just begun in {run.path}. Name another folder with --out, or "
                "continue that run with --resume"
            )
        recorded = environment(session.runtime.device)
        run.write_json(FIRST_FILE, {"data": absolute(data), **recorded})
        run.write_json("classes.json", list(session.data.dataset.classes))
        if session.data.made_split or session.data.corrections is not None:
            run.write_split(session.data.dataset, session.data.groups)
        if session.data.corrections is not None:
            run.write_corrections(session.data.corrections, session.data.dataset.classes)
        # recipe.yaml marks the folder as a run, so write it after the files that resuming needs.
        run.write_text("recipe.yaml", session.recipe.to_yaml())
        draw_inputs(run.path, session.data, session.recipe)
    return run


def write_epoch(run: RunFolder, session: Session, row: dict[str, Any], is_kept: bool) -> None:
    """Write the history of the run so far, and its model if this epoch is kept.

    Args:
        run: the run folder.
        session: its state holds the weights and the history.
        row: the epoch's row in the history.
        is_kept: whether to keep the model of this epoch; see `replaces_kept`.
    """
    state = session.state
    if is_kept:
        modelfile.write(run.model, state.evaluated.state_dict(), make_header(session, row))
    run.write_rows("history.csv", state.history)
    run.write_rows("timings.csv", state.timings)


def finish_run(run: RunFolder, session: Session) -> Run:
    """Write the last model, then evaluate the kept one from its file and write the results.

    The results are curves, suspect labels, the calibration data of the model file, confusion
    matrix, report and metrics. Without validation images, there are only curves and suspect labels,
    and the metrics are the last row of the history.
    """
    state = session.state
    recipe = session.recipe
    device = str(session.runtime.device)
    header = make_header(session, state.history[-1])
    modelfile.write(run.last, state.evaluated.state_dict(), header)
    title = f"{run.path.name}: {recipe.model}, recipe {recipe.name}"
    plots.save_curves(state.history, run.path / "curves.png", title)
    write_suspects(run, session)  # before the report, which links to the suspects page
    split = session.data.val.split
    if not len(split):
        run.write_json("metrics.json", {"split": None, **state.history[-1]})
        return run.result(recipe, state.history)
    workers = session.workers
    found = evaluate_split(
        run.model, split, "val", device=device, workers=workers, with_features=True
    )
    train = session.data.train
    if train.preprocessing != recipe.preprocessing():  # cached at the size for augmentation
        train = Images(train.split, recipe.preprocessing())
    classes, features = session.model.get_parameter("fc.weight").shape
    if has_room(classes, features):
        write_calibration(
            run.model, found, train, out=run.model, seed=recipe.seed, device=device, workers=workers
        )
    else:
        say(
            "The model file will not support --coverage and --false-alarms: there are too many "
            "classes for its header."
        )
    plots.save_confusion_matrix(
        confusion_counts(found.metrics["confusion_matrix"]),
        found.classes,
        run.path / "confusion_matrix.png",
        f"val: {found.metrics['accuracy']:.2%} of {found.metrics['pictures']} images correct",
    )
    html.write_page(run.path / "report.html", found, run.model, device)
    run.write_json("metrics.json", found.metrics)  # last: its presence means "finished"
    return run.result(recipe, state.history)


def make_header(session: Session, row: dict[str, Any]) -> Header:
    """Return the header of the model file for the epoch that a row of the history describes."""
    recipe = session.recipe
    prepared = session.data
    assert recipe.model is not None
    return Header(
        architecture=recipe.model,
        options=session.model_options,
        classes=prepared.dataset.classes,
        preprocessing=recipe.preprocessing(),
        metrics={
            key: value for key, value in row.items() if key == "epoch" or key.startswith("val_")
        },
        recipe=shareable_recipe(recipe),
        data={
            "name": prepared.dataset.name,
            "parts": describe_splits(prepared.digests),
        },
    )


def describe_splits(digests: dict[str, list[str]]) -> dict[str, Any]:
    """Return the count and the digests of each split.

    Digests that do not fit in the header are left out, those of the training images first, because
    the validation images in a flat folder can be identified only by their digests.
    """
    splits = {}
    room = MAX_DIGESTS
    for name in sorted(digests, reverse=True):  # val, train
        own = digests[name] if len(digests[name]) <= room else []
        room -= len(own)
        splits[name] = {"count": len(digests[name]), "digests": sorted(own)}
    return splits


def format_epoch(row: dict[str, Any], timing: dict[str, Any], epochs: int) -> str:
    """Return the line that is printed after an epoch."""
    validation = ""
    if "val_loss" in row:
        validation = f"val loss {row['val_loss']:.3f}  val accuracy {row['val_accuracy']:7.2%}  "
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  {row['image_size']:>3} px  "
        f"loss {row['train_loss']:.3f}  {validation}"
        f"{timing['images_per_second']:5.0f} img/s  "
        f"{timing['train_seconds'] + timing['val_seconds']:5.1f} s"
    )
