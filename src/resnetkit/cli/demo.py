"""The main job on the embedded data set, by the same road that any folder takes."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..progress import answer as show
from ..progress import printable, say

IMAGES = 24


def run_demo(out: Path) -> None:
    """Write the digits, train, evaluate on the test part, predict, and say what was reached."""
    from ..data.digits import write_digits
    from ..evaluation.evaluate import evaluate
    from ..inference.predictor import load
    from ..training.loop import train
    from .show import evaluation_table

    digits = out / "digits"
    if digits.exists():
        say(f"The digits are in {digits} already.")
    else:
        say(f"Writing scikit-learn's handwritten digits as PNG pictures into {digits}")
        write_digits(digits)
    run = train(digits, "demo", out=_free(out / "run"))
    tested = evaluate(run.model, digits, "test")
    show(f"\n{evaluation_table(tested)}")

    predictor = load(run.model)
    last = len(tested.samples) - 1
    chosen = [round(i * last / (IMAGES - 1)) for i in range(IMAGES)]  # of every digit
    answers = predictor([tested.samples.path(i) for i in chosen])
    show("\nsome predictions:")
    for answer in answers[:: IMAGES // 4]:
        show(f"  {printable(answer.source)}: {answer.class_name} ({answer.probability:.1%})")
    sheet = run.folder / "predictions.png"
    _draw(answers, [tested.classes[tested.samples.labels[i]] for i in chosen], sheet)

    file, image = shlex.quote(str(run.model)), shlex.quote(answers[0].source)
    show(
        f"\ntest accuracy {tested.metrics['accuracy']:.2%} on {tested.metrics['pictures']} digits "
        f"that were not trained on, after {run.train_seconds:.0f} s of training\n"
        f"pictures      {digits}\n"
        f"model         {run.model}\n"
        f"figures       {run.folder}: predictions.png of the test part; curves.png and "
        "confusion_matrix.png of the validation part\n\nnext:\n"
        f"  resnet predict {file} {image}\n"
        f"  resnet train FOLDER_OF_YOUR_PHOTOS"
    )


def _free(path: Path) -> Path:
    number = 2
    chosen = path
    while chosen.exists():
        chosen, number = path.with_name(f"{path.name}-{number}"), number + 1
    return chosen


def _draw(answers: list, truths: list[str], path: Path) -> None:  # type: ignore[type-arg]
    import numpy as np
    from PIL import Image

    from ..report.plots import save_image_grid

    shown = []
    for answer in answers:
        with Image.open(answer.source) as image:
            shown.append(np.asarray(image.convert("RGB")))
    captions = [f"{a.class_name}  {a.probability:.0%}" for a in answers]
    wrong = [a.class_name != truth for a, truth in zip(answers, truths, strict=True)]
    save_image_grid(
        shown, captions, path, "Digits of the test part, and what the network says", wrong
    )
