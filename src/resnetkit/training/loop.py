"""The training loop: `train` is the main path, from a folder of pictures to a model file."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .. import randomness, runtime
from ..data import folder
from ..data.cache import Pictures
from ..data.loader import Batch, Loader
from ..data.transforms import normalize
from ..errors import TrainingError
from ..evaluation.evaluate import Evaluation, evaluate_part, predict_logits
from ..evaluation.metrics import accuracy_and_loss
from ..models import modelfile
from ..progress import bar, say
from ..runtime import Runtime
from ..storage import refuse_used
from . import plan
from . import recipe as recipes
from .optim import learning_rate, make_optimizer, set_learning_rate
from .recipe import Recipe
from .run import RunFolder, epoch_line, make_header, write_beginning, write_end


@dataclass(frozen=True)
class Run:
    """What `train` leaves: its folder, the resolved recipe, one row an epoch, the evaluation."""

    folder: Path
    model: Path
    recipe: Recipe
    history: tuple[dict[str, Any], ...]
    evaluation: Evaluation
    train_seconds: float


def train(
    data: str | os.PathLike[str],
    recipe: str | Path = "fast",
    *,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    **settings: Any,
) -> Run:
    """Train a network on a folder of pictures.

    Args:
        data: a folder of classes, a folder of splits, or a CSV manifest; see `data.folder`.
        recipe: the name of a built-in recipe, or a YAML file.
        out: the folder of the run; by default a new one under ``runs/``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: threads that read pictures; by default one a core. They change no bit.
        settings: other values for fields of the recipe, as in ``epochs=5``.

    Raises:
        RecipeError, DataError, OutputError: what was asked for cannot be done.
        TrainingError: the loss is no longer finite.
    """
    # What to do: the recipe, with everything it leaves open found from the data and the machine.
    chosen = recipes.load(recipe).with_settings(settings)
    where = runtime.pick(device, chosen.precision)
    workers = runtime.default_workers() if workers is None else workers
    refuse_used(None if out is None else Path(out))
    listing = folder.read(data)
    main_part = listing.parts.get("train") or listing.parts.get("all") or listing.parts["val"]
    chosen = plan.choose_size(chosen, main_part, where.device.type)
    prepared = plan.prepare(listing, chosen, workers)
    chosen = plan.choose_epochs(chosen, len(prepared.train))
    assert chosen.epochs is not None

    # The network: its initial weights are f(seed).
    model, options = plan.make_network(chosen, len(listing.classes))
    layout = torch.channels_last if chosen.channels_last else torch.contiguous_format
    model = model.to(where.device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, chosen)

    # Say so, and begin.
    loader = Loader(prepared.train, chosen.batch_size, workers)
    batches = loader.training_batches()
    expected = plan.measure(model, chosen, where, batches, len(prepared.val))
    say(plan.describe(prepared, chosen, where, model, workers, expected))
    run = RunFolder.claim(out, f"{listing.name}-{chosen.model}")
    write_beginning(run, prepared, chosen)
    say(f"{'results in':14}{run.path}\n")

    history: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    best = (-1.0, -math.inf)
    start = time.perf_counter()
    for epoch in range(chosen.epochs):
        began = time.perf_counter()
        size = chosen.train_size(epoch)
        epoch_batches = loader.training(chosen.augmentation(), size, chosen.seed, epoch)
        tally = Tally()
        model.train()
        with bar(f"epoch {epoch + 1}/{chosen.epochs}", batches) as advance:
            for number, batch in enumerate(epoch_batches):
                step = epoch * batches + number
                rate = learning_rate(chosen, step, batches * chosen.epochs)
                loss, right = training_step(model, optimizer, batch, chosen, where, step, rate)
                check_finite(loss, step, batch, prepared.train)
                tally.add(loss, right, len(batch.indices))
                advance(tally.text(time.perf_counter() - began))
        trained = time.perf_counter() - began

        logits = predict_logits(model, prepared.val, where.device, workers)
        labels = torch.from_numpy(prepared.val.part.labels.astype("int64"))
        accuracy, val_loss = accuracy_and_loss(logits, labels)
        history.append(
            {
                "epoch": epoch + 1,
                "image_size": size,
                "lr": rate,
                "train_loss": tally.loss,
                "train_accuracy": tally.accuracy,
                "val_loss": val_loss,
                "val_accuracy": accuracy,
            }
        )
        elapsed = time.perf_counter() - began
        speed = tally.seen / trained
        timings.append({"epoch": epoch + 1, "seconds": elapsed, "images_per_second": speed})

        header = make_header(prepared, chosen, options, history[-1])
        modelfile.write(run.last, model.state_dict(), header)
        if (accuracy, -val_loss) > best:
            best = (accuracy, -val_loss)
            modelfile.write(run.model, model.state_dict(), header)
        run.write_rows("history.csv", history)
        run.write_rows("timings.csv", timings)
        say(epoch_line(history[-1], timings[-1], chosen.epochs))
    train_seconds = time.perf_counter() - start

    # The evidence comes from the saved file, by the road that anyone takes later.
    evaluation = evaluate_part(run.model, prepared.val.part, "val", device=device, workers=workers)
    write_end(run, chosen, history, evaluation)
    return Run(run.path, run.model, chosen, tuple(history), evaluation, train_seconds)


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    recipe: Recipe,
    where: Runtime,
    step: int,
    rate: float,
) -> tuple[float, int]:
    """Forward, backward, update. Returns the mean loss, and how many pictures were right."""
    torch.manual_seed(randomness.derive(recipe.seed, "network", step, 0))
    images = normalize(batch.images.to(where.device), recipe.preprocessing())
    if not recipe.channels_last:
        images = images.contiguous()
    labels = batch.labels.to(where.device)
    with where.autocast():
        logits = model(images)  # (n, classes)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    set_learning_rate(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), int((logits.detach().argmax(1) == labels).sum())


def check_finite(loss: float, step: int, batch: Batch, pictures: Pictures) -> None:
    """Stop before a network that is no longer finite is saved."""
    if math.isfinite(loss):
        return
    names = ", ".join(str(pictures.part.paths[i]) for i in batch.indices)
    raise TrainingError(
        f"The loss is {loss} at step {step + 1}. A lower learning rate (--lr) usually helps. "
        f"The model files of the last whole epoch are kept. Pictures of this batch: {names}"
    )


@dataclass
class Tally:
    """Mean loss and accuracy over the pictures of an epoch so far."""

    seen: int = 0
    right: int = 0
    total_loss: float = 0.0

    def add(self, loss: float, right: int, count: int) -> None:
        self.seen += count
        self.right += right
        self.total_loss += loss * count

    @property
    def loss(self) -> float:
        return self.total_loss / self.seen

    @property
    def accuracy(self) -> float:
        return self.right / self.seen

    def text(self, seconds: float) -> str:
        speed = self.seen / seconds
        return f"loss {self.loss:.3f}  accuracy {self.accuracy:.1%}  {speed:.0f} img/s"
