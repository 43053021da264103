"""``resnet demo``: the main job on the built-in dataset, as on any folder of photos."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..inference.prediction import Prediction

PREDICTIONS = 24
"""Number of test images in ``predictions.png``."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the digits and the run.")] = Path("demo"),
) -> None:
    """Train, evaluate and predict on handwritten digits. Downloads nothing."""
    from ..data.digits import write_digits
    from ..evaluation.evaluate import evaluate
    from ..inference.predictor import load
    from ..progress import print_result, say
    from ..text import printable
    from ..training.loop import train
    from .tables import evaluation_table

    digits = out / "digits"
    if digits.exists():
        say(f"Using the digits in {digits}.")
    else:
        say(f"Writing scikit-learn's handwritten digits as PNG images to {digits}")
        write_digits(digits)
    run = train(digits, "demo", out=_unused_path(out / "run"))
    result = evaluate(run.model, digits, "test")
    print_result(f"\n{evaluation_table(result)}")

    predictor = load(run.model)
    last = len(result.samples) - 1
    indices = [round(i * last / (PREDICTIONS - 1)) for i in range(PREDICTIONS)]  # every digit
    predictions = predictor([result.samples.path(i) for i in indices])
    print_result("\nsome predictions:")
    for prediction in predictions[:: PREDICTIONS // 4]:
        source = printable(prediction.source)
        print_result(f"  {source}: {prediction.class_name} ({prediction.probability:.1%})")
    truths = [result.classes[result.samples.labels[i]] for i in indices]
    _draw_predictions(predictions, truths, run.folder / "predictions.png")

    file = shlex.quote(str(run.model))
    image = shlex.quote(predictions[0].source)
    print_result(
        f"\ntest accuracy {result.metrics['accuracy']:.2%} on {result.metrics['pictures']} digits "
        f"not used for training, after {run.train_seconds:.0f} s of training\n"
        f"images        {digits}\n"
        f"model         {run.model}\n"
        f"figures       {run.folder}: predictions.png for the test split; curves.png and "
        "confusion_matrix.png for the validation split\n\nnext:\n"
        f"  resnet predict {file} {image}\n"
        f"  resnet train FOLDER_OF_YOUR_PHOTOS"
    )


def _unused_path(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    candidate = path
    number = 2
    while candidate.exists():
        candidate = path.with_name(f"{path.name}-{number}")
        number += 1
    return candidate


def _draw_predictions(predictions: Sequence[Prediction], truths: Sequence[str], path: Path) -> None:
    import numpy as np
    from PIL import Image

    from ..report.plots import save_image_grid

    pixels = []
    for prediction in predictions:
        with Image.open(prediction.source) as image:
            pixels.append(np.asarray(image.convert("RGB")))
    captions = [f"{p.class_name}  {p.probability:.0%}" for p in predictions]
    wrong = [p.class_name != truth for p, truth in zip(predictions, truths, strict=True)]
    title = "Digits of the test split, and the network's predictions"
    save_image_grid(pixels, captions, path, title, wrong)
