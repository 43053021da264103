"""Search for wrong labels at the end of a run, and write the results to the run folder."""

from __future__ import annotations

from dataclasses import replace

from ..evaluation.evaluate import BATCH_SIZE, predict_features
from ..evaluation.label_errors import LabelScores, score_labels
from ..models.weights import modelfile
from ..progress import say
from ..report import suspects as report
from ..runtime import memory_format
from .run import RunFolder, recorded_data
from .session import Session

MOST_IMAGES = 200_000
"""Maximum number of training images searched for wrong labels: their features take one or two
gigabytes, and the time to compare them grows with their number."""


MOST_LOGITS = 100_000_000
"""Maximum number of logits, one for each training image and class; the search needs up to about 30
bytes for each."""

MOST_SHARE = 0.25
"""Largest share of the training labels that is listed. A larger share means that the network is
wrong, not the labels."""


def write_suspects(run: RunFolder, session: Session) -> None:
    """Search for wrong training labels; write ``suspects.csv``, and a page if there are any.

    Args:
        run: the run folder, with the model of the kept epoch.
        session: has the training images and their margins.
    """
    images = session.data.train
    numbers = len(images) * len(session.data.dataset.classes)
    if len(images) > MOST_IMAGES or numbers > MOST_LOGITS:
        say(
            f"Not searching for wrong training labels: there are {len(images):,} images and "
            f"{numbers:,} logits, and the limits are {MOST_IMAGES:,} and {MOST_LOGITS:,}."
        )
        return
    note = ""
    if session.state.margins is None:
        note = (
            "MixUp or CutMix blended the images, so training recorded no margins. The search for "
            "wrong labels uses the final network and nearest neighbors instead, and finds fewer."
        )
        say(note)
    suspects = search_labels(run, session).suspects()
    if len(suspects) > MOST_SHARE * len(images):
        say(
            f"Wrong training labels are not listed: {len(suspects):,} of {len(images):,} labels "
            "look wrong, so the network has learned too little to judge them. Train for longer "
            "(--epochs)."
        )
        return
    classes = session.data.dataset.classes
    report.write_suspects(run.suspects, suspects, images, classes)
    if suspects:
        # With corrections, the run's split.csv has the corrected labels, but the data does not.
        is_corrected = run.recorded_corrections() is not None
        data = str(run.path / "split.csv") if is_corrected else recorded_data(run.path)
        report.write_suspects_page(
            run.path / "suspects.html",
            suspects,
            images,
            classes,
            data=data,
            note=note,
        )


def search_labels(run: RunFolder, session: Session) -> LabelScores:
    """Score the training labels by their margins and the features of the kept model.

    The pass over the training images runs in the training precision, in batches that need no more
    memory than training does.
    """
    runtime = session.runtime
    recipe = session.recipe
    model, _ = modelfile.read(run.model)
    layout = memory_format(model, runtime.device, runtime.precision)
    model = model.to(runtime.device, memory_format=layout)  # type: ignore[call-overload]
    # Use the evaluation preprocessing: training may decode images at a larger size to crop from.
    images = replace(session.data.train, preprocessing=recipe.preprocessing())
    features, logits = predict_features(
        model,
        images,
        runtime.device,
        session.workers,
        precision=runtime.precision,
        batch_size=max(BATCH_SIZE, 2 * recipe.micro_batch_size(runtime.world_size)),
    )
    margins = session.state.margins
    return score_labels(
        images.split.labels,
        logits.numpy(),
        features.numpy(),
        None if margins is None else margins.mean(),
    )
