"""The state of a run between two steps, and how to restore it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from ..errors import TrainingError
from ..progress import say
from ..report.record import epoch_rank, kept_epoch, replaces_kept
from ..text import pluralize
from .checkpoint import Snapshot
from .ema import ModelEma
from .margins import Margins
from .optimizer import Optimizer
from .recipe import Recipe

SMALLEST_SCALE = 2.0**-10
"""The smallest useful loss scale in fp16. It starts at 2^16, and each overflow halves it."""

POSITION = ("epoch", "batch", "step", "history", "timings")
"""The fields of the state that are saved and restored unchanged."""


@dataclass
class Tally:
    """Mean loss and accuracy over the images seen so far in an epoch."""

    seen: int = 0
    correct: int = 0
    total_loss: float = 0.0
    seconds: float = 0.0

    def add(self, loss: float, correct: int, count: int, seconds: float) -> None:
        """Add a batch of ``count`` images, given its mean loss."""
        self.seen += count
        self.correct += correct
        self.total_loss += loss * count
        self.seconds += seconds

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return self.total_loss / self.seen

    @property
    def accuracy(self) -> float:
        """Share of the images that were classified correctly."""
        return self.correct / self.seen

    @property
    def speed(self) -> float:
        """Images per second."""
        return self.seen / self.seconds

    def text(self) -> str:
        """Return the text that the progress bar shows."""
        if not self.seen:
            return ""
        return f"loss {self.loss:.3f}  accuracy {self.accuracy:.1%}  {self.speed:.0f} img/s"


@dataclass
class State:
    """Everything that a run changes.

    RNG state is not stored: every random choice is a function of seed and position; see
    `resnetkit.randomness`.

    Args:
        model: the network with its plain parameter names.
        optimizer: its state holds the moments.
        identity: recipe and data, as `run_identity` returns them.
        ema: the averaged weights, if the recipe has them.
        margins: the margins of the training images; None if the recipe mixes images.
        scaler: scales the loss in fp16; see `Runtime.scaler`.
        network: the module that the training step calls; None means ``model``.
        world_size: number of ranks.
        epoch: the next epoch, from 0.
        batch: the next batch within that epoch, from 0.
        step: the next step of the run, from 0.
        tally: loss and accuracy of the current epoch so far.
        history: one row per finished epoch, as in ``history.csv``.
        timings: one row per finished epoch, as in ``timings.csv``.
    """

    model: nn.Module
    optimizer: Optimizer
    identity: dict[str, Any]
    ema: ModelEma | None = None
    margins: Margins | None = None
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    network: nn.Module | None = None
    world_size: int = 1
    epoch: int = 0
    batch: int = 0
    step: int = 0
    tally: Tally = field(default_factory=Tally)
    history: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.identity["data"]["classes"])

    @property
    def forward(self) -> nn.Module:
        """The module that the training step runs: the model, or the wrapper from `wrap_model`."""
        return self.model if self.network is None else self.network

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and saved: the EMA if there is one, else the model."""
        return self.model if self.ema is None else self.ema.model

    def has_stopped_improving(self, patience: int | None) -> bool:
        """Return whether the last ``patience`` epochs were all worse than the best."""
        if patience is None or not self.history:
            return False
        best = max(self.history, key=epoch_rank)
        return len(self.history) - int(best["epoch"]) >= patience

    def end_step(self) -> None:
        """Advance to the next step. The outcome of this one is added to the tally later."""
        self.batch += 1
        self.step += 1

    def end_epoch(self, row: dict[str, Any], val_seconds: float, val_images: int) -> bool:
        """Record the epoch and advance to the next; return whether to keep its model.

        Args:
            row: the epoch's row of the history, without the column ``kept``.
            val_seconds: how long the validation took.
            val_images: number of validation images; see `replaces_kept`.
        """
        is_kept = replaces_kept([*self.history, row], val_images)
        self.history.append({**row, "kept": int(is_kept)})
        self.timings.append(
            {
                "epoch": row["epoch"],
                "train_seconds": self.tally.seconds,
                "val_seconds": val_seconds,
                "images_per_second": self.tally.speed,
            }
        )
        self.epoch += 1
        self.batch = 0
        self.tally = Tally()
        return is_kept

    def check_finite(self) -> None:
        """Check that the weights are worth saving.

        Raises:
            TrainingError: a weight is infinite or NaN, or the gradients overflow fp16 at any scale.
        """
        self.check_scale()
        tensors = {k: v for k, v in self.model.state_dict().items() if v.is_floating_point()}
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors.values()])
        for name, is_finite in zip(tensors, finite.cpu().tolist(), strict=True):  # a single copy
            if not is_finite:
                raise TrainingError(
                    f"{name} is no longer finite after step {self.step}. A lower learning rate "
                    "(--lr) usually helps. Earlier saves are kept"
                )

    def check_scale(self) -> None:
        """Check that steps in fp16 are not all being skipped.

        Raises:
            TrainingError: the loss scale was halved repeatedly, and the gradients still overflow.
        """
        scale = self.scaler.get_scale()
        if scale < SMALLEST_SCALE:
            raise TrainingError(
                "The gradients overflow fp16 at every loss scale. The scale fell to "
                f"{scale:g}, and every step on the way was skipped. Train in fp32 (--set "
                "precision=fp32), or lower the learning rate (--lr)"
            )

    def snapshot(self) -> Snapshot:
        """Return a copy on the CPU that later steps do not change."""
        values = {key: getattr(self, key) for key in POSITION}
        values |= {
            "tally": asdict(self.tally),
            "compute_threads": torch.get_num_threads(),
            "world_size": self.world_size,
            "device": self._device(),
            "identity": self.identity,
            "scaler": self.scaler.state_dict(),
        }
        # Copies keep the strides of the originals, which is cheap. They are made contiguous when
        # they are written.
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._tensors()}
        return Snapshot(tensors, _with_copied_lists(values))

    def restore(self, snapshot: Snapshot, extend_hint: str = "", new_split: str = "") -> None:
        """Restore the state of a snapshot.

        Moments get the strides of their parameters, because a fused kernel reads both in memory
        order.

        Args:
            snapshot: a saved state.
            extend_hint: how to train the run for longer, if it is finished; included in the error
                if only epochs or steps differ.
            new_split: how the split differs from the recorded one, if the images are the same.

        Raises:
            TrainingError: the snapshot belongs to a different run; the differences are listed.
        """
        values = snapshot.values
        check_same_run(values["identity"], self.identity, extend_hint, new_split=new_split)
        set_compute_threads(values["compute_threads"])
        saved_ranks = values["world_size"]
        if saved_ranks != self.world_size:
            say(
                f"Resuming with {pluralize(self.world_size, 'rank')} a run saved with "
                f"{saved_ranks}, on the same batches: results will not be bit-identical."
            )
        saved_device = values.get("device", self._device())
        if saved_device != self._device():
            say(
                f"Resuming on {self._device()} a run saved on {saved_device}: results will not be "
                "bit-identical."
            )
        for index, parameter in enumerate(self._parameters()):
            for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                saved = snapshot.tensors.get(f"optimizer.{index}.{key}")
                if saved is not None:
                    like = parameter if saved.ndim else saved
                    moment = torch.empty_like(like, device=parameter.device).copy_(saved)
                    self.optimizer.state[parameter][key] = moment
        self.model.load_state_dict(_select_prefix("model.", snapshot.tensors))
        if self.ema is not None:
            self.ema.model.load_state_dict(_select_prefix("average.", snapshot.tensors))
        if self.margins is not None:
            self._restore_margins(self.margins, snapshot)
        for key in POSITION:
            setattr(self, key, values[key])
        tally = dict(values["tally"])
        if "right" in tally:  # the name up to version 0.1
            tally["correct"] = tally.pop("right")
        self.tally = Tally(**tally)
        if values.get("scaler"):  # only in fp16
            self.scaler.load_state_dict(values["scaler"])
        if self.history and "kept" not in self.history[0]:  # saved by version 0.1
            kept = kept_epoch(self.history)
            self.history = [{**row, "kept": int(row is kept)} for row in self.history]

    def _restore_margins(self, margins: Margins, snapshot: Snapshot) -> None:
        for name, tensor in margins.tensors().items():
            if name in snapshot.tensors:
                tensor.copy_(snapshot.tensors[name])
            elif snapshot.values["step"]:
                say(
                    "The saved state has no margins, because an older version wrote it. The search "
                    "for wrong labels uses only the margins from the remaining steps."
                )
                return

    def _device(self) -> str:
        return next(self.model.parameters()).device.type

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _tensors(self) -> list[tuple[str, Tensor]]:
        """Return the tensors to save, with their names: weights, moments and margins."""
        tensors = [(f"model.{name}", tensor) for name, tensor in self.model.state_dict().items()]
        if self.ema is not None:
            ema_tensors = self.ema.model.state_dict()
            tensors += [(f"average.{name}", tensor) for name, tensor in ema_tensors.items()]
        for index, parameter in enumerate(self._parameters()):
            for key, value in self.optimizer.state[parameter].items():
                tensors.append((f"optimizer.{index}.{key}", value))
        if self.margins is not None:
            tensors += self.margins.tensors().items()
        return tensors


def check_same_run(
    saved: dict[str, Any], now: dict[str, Any], extend_hint: str = "", *, new_split: str = ""
) -> None:
    """Compare the identities of two runs.

    A recipe field that is missing from the saved recipe is taken to have its default. Facts about
    the data that the saved run did not record are not compared.

    Args:
        saved: the identity of the saved run.
        now: the identity of this run.
        extend_hint, new_split: as in `State.restore`.

    Raises:
        TrainingError: the identities differ; the differences are listed.
    """
    before = {
        **saved,
        "recipe": {**Recipe.model_validate({}).model_dump(mode="json"), **saved["recipe"]},
        "data": {**now["data"], **saved["data"]},
    }
    differences = [
        f"{kind}: {key.replace('pictures', 'images')} was {before[kind].get(key)!r} and is "
        f"{now[kind].get(key)!r}"
        for kind in now
        for key in now[kind]
        if before[kind].get(key) != now[kind][key]
    ]
    if not differences:
        return
    if new_split and all(d.startswith("data: ") for d in differences):
        raise TrainingError(f"This is not the split that was saved: {new_split}")
    hint = ""
    if extend_hint and all(
        d.startswith(("recipe: epochs ", "recipe: steps ")) for d in differences
    ):
        hint = f"\n{extend_hint}"
    raise TrainingError(
        "This is not the run that was saved. Resume it with its own settings and data, or start "
        "another run with --out:\n  " + "\n  ".join(differences) + hint
    )


def set_compute_threads(count: int) -> None:
    """Compute with the number of threads that the run started with.

    With a different number, values are summed in a different order, which changes the last bits of
    the result.
    """
    if torch.get_num_threads() == count:
        return
    torch.set_num_threads(count)
    if torch.get_num_threads() == count:
        say(f"Computing with {pluralize(count, 'thread')}, as when the run started.")
    else:
        say(
            f"The run started with {pluralize(count, 'compute thread')}, which are not available: "
            "results will not be bit-identical."
        )


def _select_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have the prefix, with the prefix removed."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _with_copied_lists(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in values.items()}
