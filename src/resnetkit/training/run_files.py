"""What a run writes into its folder: at the start, after each epoch, and at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..evaluation.evaluate import evaluate_split
from ..evaluation.metrics import confusion_counts
from ..models.weights import modelfile
from ..models.weights.modelfile import Header
from ..report import html, plots
from ..runtime import environment
from .initial_weights import shareable_recipe
from .input_figures import draw_inputs
from .run import FIRST_FILE, Run, RunFolder
from .session import Session


def begin_run(run: RunFolder, session: Session, data: str | os.PathLike[str]) -> RunFolder:
    """Claim the folder and write what is known before the first step.

    That is: environment, recipe, classes, split, and figures of the inputs as the network sees
    them.

    Returns:
        The folder that was claimed. Its number may differ if another run was faster.

    Raises:
        OutputError: the folder cannot be created.
    """
    run.claim()
    recorded = environment(session.runtime.device)
    run.write_json(FIRST_FILE, {"data": str(Path(data).absolute()), **recorded})
    run.write_text("recipe.yaml", session.recipe.to_yaml())
    run.write_json("classes.json", list(session.data.dataset.classes))
    if session.data.made_split:
        run.write_split(session.data.dataset)
    draw_inputs(run.path, session.data, session.recipe)
    return run


def write_epoch(run: RunFolder, session: Session, row: dict[str, Any], is_best: bool) -> None:
    """Write the history of the run so far, and the model if this epoch is the best.

    Args:
        run: the run folder.
        session: its state holds the weights and the history.
        row: the epoch's row of the history.
        is_best: whether the epoch is the best so far.
    """
    state = session.state
    if is_best:
        modelfile.write(run.model, state.evaluated.state_dict(), make_header(session, row))
    run.write_rows("history.csv", state.history)
    run.write_rows("timings.csv", state.timings)


def finish_run(run: RunFolder, session: Session) -> Run:
    """Write the last model, then evaluate the best one from its file and write the results.

    The results are curves, confusion matrix, report and metrics.
    """
    state = session.state
    recipe = session.recipe
    device = str(session.runtime.device)
    header = make_header(session, state.history[-1])
    modelfile.write(run.last, state.evaluated.state_dict(), header)
    split = session.data.val.split
    found = evaluate_split(run.model, split, "val", device=device, workers=session.workers)
    title = f"{run.path.name}: {recipe.model}, recipe {recipe.name}"
    plots.save_curves(state.history, run.path / "curves.png", title)
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
    """Return the header of the model file for the epoch of a row of the history."""
    recipe = session.recipe
    prepared = session.data
    assert recipe.model is not None
    return Header(
        architecture=recipe.model,
        options=session.model_options,
        classes=prepared.dataset.classes,
        preprocessing=recipe.preprocessing(),
        metrics={key: row[key] for key in ("epoch", "val_accuracy", "val_loss")},
        recipe=shareable_recipe(recipe),
        data={
            "name": prepared.dataset.name,
            "parts": {
                name: {"count": len(digests), "digests": sorted(digests)}
                for name, digests in prepared.digests.items()
            },
        },
    )


def format_epoch(row: dict[str, Any], timing: dict[str, Any], epochs: int) -> str:
    """Return the line that is printed after an epoch."""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  {row['image_size']:>3} px  "
        f"loss {row['train_loss']:.3f}  val loss {row['val_loss']:.3f}  "
        f"val accuracy {row['val_accuracy']:7.2%}  "
        f"{timing['images_per_second']:5.0f} img/s  "
        f"{timing['train_seconds'] + timing['val_seconds']:5.1f} s"
    )
