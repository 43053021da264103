"""Where a run stands between two steps, and how it is put back there."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from ..errors import TrainingError
from ..progress import say
from .checkpoint import Snapshot
from .ema import ModelEma
from .optimizer import Optimizer
from .recipe import Recipe

SMALLEST_SCALE = 2.0**-10
"""Of the loss in fp16. It begins at 2^16 and is halved at each overflow."""


@dataclass
class Tally:
    """Mean loss and accuracy over the pictures of an epoch so far."""

    seen: int = 0
    correct: int = 0
    total_loss: float = 0.0
    seconds: float = 0.0

    def add(self, loss: float, correct: int, count: int, seconds: float) -> None:
        self.seen += count
        self.correct += correct
        self.total_loss += loss * count
        self.seconds += seconds

    @property
    def loss(self) -> float:
        return self.total_loss / self.seen

    @property
    def accuracy(self) -> float:
        return self.correct / self.seen

    @property
    def speed(self) -> float:
        """Pictures a second."""
        return self.seen / self.seconds

    def text(self) -> str:
        if not self.seen:
            return ""
        return f"loss {self.loss:.3f}  accuracy {self.accuracy:.1%}  {self.speed:.0f} img/s"


@dataclass
class State:
    """Everything that a run changes. Chance is no part of it: that is a function of the place.

    ``epoch`` and ``batch`` say what comes next; ``batch`` counts within the epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    identity: dict[str, Any]  # of the run: its recipe, its data
    average: ModelEma | None = None
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))  # see Runtime
    network: nn.Module | None = None  # what the training step runs forward; by default the model
    world_size: int = 1
    epoch: int = 0
    batch: int = 0
    step: int = 0
    tally: Tally = field(default_factory=Tally)
    history: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, float] = (-1.0, -math.inf)  # accuracy, and minus the loss

    @property
    def classes(self) -> int:
        return len(self.identity["data"]["classes"])

    @property
    def forward(self) -> nn.Module:
        """What the training step runs: the model, or what is wrapped around it."""
        return self.model if self.network is None else self.network

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the averaged one where there is one."""
        return self.model if self.average is None else self.average.model

    def is_stuck(self, patience: int | None) -> bool:
        """Whether the last ``patience`` epochs were all worse than the best."""
        if patience is None or not self.history:
            return False
        best = max(self.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        return len(self.history) - int(best["epoch"]) >= patience

    def end_step(self) -> None:
        """Turn to the next step. What this one reached is noted when it is known."""
        self.batch += 1
        self.step += 1

    def end_epoch(self, row: dict[str, Any], validation_seconds: float) -> bool:
        """Note the epoch and turn to the next; tells whether it was the best so far."""
        self.history.append(row)
        self.timings.append(
            {
                "epoch": row["epoch"],
                "train_seconds": self.tally.seconds,
                "val_seconds": validation_seconds,
                "images_per_second": self.tally.speed,
            }
        )
        self.epoch, self.batch, self.tally = self.epoch + 1, 0, Tally()
        reached = (row["val_accuracy"], -row["val_loss"])
        better = reached > self.best
        self.best = max(reached, self.best)
        return better

    def check_finite(self) -> None:
        """Make sure that nothing is saved that cannot be used.

        Raises:
            TrainingError: a weight is infinite or not a number, or no gradient fits fp16.
        """
        self.check_scale()
        tensors = {k: v for k, v in self.model.state_dict().items() if v.is_floating_point()}
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors.values()])
        for name, fine in zip(tensors, finite.cpu().tolist(), strict=True):  # read at once
            if not fine:
                raise TrainingError(
                    f"{name} is no longer finite after step {self.step}. A lower learning rate "
                    "(--lr) usually helps. What was saved before is kept"
                )

    def check_scale(self) -> None:
        """Make sure that steps in fp16 are not all skipped.

        Raises:
            TrainingError: the scale of the loss was halved again and again, and gradients still
                overflow.
        """
        scale = self.scaler.get_scale()
        if scale < SMALLEST_SCALE:
            raise TrainingError(
                f"The gradients overflow fp16 at every scale of the loss: it fell to {scale:g}, "
                "and all the steps on the way were skipped. Compute in fp32 (--set "
                "precision=fp32), or lower the learning rate (--lr)"
            )

    def snapshot(self) -> Snapshot:
        """A copy that later steps do not touch."""
        values = {
            key: getattr(self, key) for key in ("epoch", "batch", "step", "history", "timings")
        }
        best = [self.best[0], None if math.isinf(self.best[1]) else self.best[1]]
        values |= {
            "tally": asdict(self.tally),
            "best": best,
            "compute_threads": torch.get_num_threads(),
            "world_size": self.world_size,
            "device": self._device(),
            "identity": self.identity,
            "scaler": self.scaler.state_dict(),
        }
        # A copy in the memory order of the original: cheap, and contiguous only on the disk.
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._tensors()}
        return Snapshot(tensors, _copied(values))

    def restore(self, snapshot: Snapshot, longer: str = "", moved: str = "") -> None:
        """Go back to where ``snapshot`` was taken.

        Moments are copied into tensors with the strides of their parameters: a fused kernel takes
        both as they lie in memory.

        Args:
            longer: the command that trains a finished run on, for who asks for more epochs.
            moved: how the split differs from the run's, where the images do not.

        Raises:
            TrainingError: the snapshot is of another run; the differences are listed.
        """
        check_same(snapshot.values["identity"], self.identity, longer, moved)
        set_compute_threads(snapshot.values["compute_threads"])
        before = snapshot.values["world_size"]
        if before != self.world_size:
            say(
                f"The run was saved with {before} process(es) and goes on with {self.world_size}, "
                "on the same batches: bits will differ."
            )
        device = snapshot.values.get("device", self._device())
        if device != self._device():
            say(f"The run was saved on {device} and goes on on {self._device()}: bits will differ.")
        for index, parameter in enumerate(self._parameters()):
            for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                saved = snapshot.tensors.get(f"optimizer.{index}.{key}")
                if saved is not None:
                    like = parameter if saved.ndim else saved
                    moment = torch.empty_like(like, device=parameter.device).copy_(saved)
                    self.optimizer.state[parameter][key] = moment
        self.model.load_state_dict(_below("model.", snapshot.tensors))
        if self.average is not None:
            self.average.model.load_state_dict(_below("average.", snapshot.tensors))
        values = snapshot.values
        for key in ("epoch", "batch", "step", "history", "timings"):
            setattr(self, key, values[key])
        tally = dict(values["tally"])
        if "right" in tally:  # the name up to version 0.1
            tally["correct"] = tally.pop("right")
        self.tally = Tally(**tally)
        if values.get("scaler"):  # only in fp16
            self.scaler.load_state_dict(values["scaler"])
        accuracy, loss = values["best"]
        self.best = (accuracy, -math.inf if loss is None else loss)

    def _device(self) -> str:
        return next(self.model.parameters()).device.type

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _tensors(self) -> list[tuple[str, Tensor]]:
        tensors = [(f"model.{name}", tensor) for name, tensor in self.model.state_dict().items()]
        if self.average is not None:
            averaged = self.average.model.state_dict()
            tensors += [(f"average.{name}", tensor) for name, tensor in averaged.items()]
        for index, parameter in enumerate(self._parameters()):
            for key, value in self.optimizer.state[parameter].items():
                tensors.append((f"optimizer.{index}.{key}", value))
        return tensors


def check_same(
    saved: dict[str, Any], now: dict[str, Any], longer: str = "", moved: str = ""
) -> None:
    """Compare the identities of two runs. A field that an older recipe had not was at its default;
    of the data only what was noted then is compared.

    Raises:
        TrainingError: they differ; the message lists where.
    """
    before = {
        **saved,
        "recipe": {**Recipe.model_validate({}).model_dump(mode="json"), **saved["recipe"]},
        "data": {**now["data"], **saved["data"]},
    }
    differences = [
        f"{kind}: {key} was {before[kind].get(key)!r} and is {now[kind].get(key)!r}"
        for kind in now
        for key in now[kind]
        if before[kind].get(key) != now[kind][key]
    ]
    if differences and moved and all(d.startswith("data: ") for d in differences):
        raise TrainingError(f"This is not the split that was saved: {moved}")
    if differences:
        only_longer = all(d.startswith(("recipe: epochs ", "recipe: steps ")) for d in differences)
        how = (
            f"\nThe learning rate of that run has ended. To train on from its last weights, with a "
            f"schedule of its own:\n  {longer}"
        )
        raise TrainingError(
            "This is not the run that was saved. Resume it as it was begun, or begin another "
            "one with --out:\n  "
            + "\n  ".join(differences)
            + (how if longer and only_longer else "")
        )


def set_compute_threads(count: int) -> None:
    """The number of compute threads is part of a run: sums in another order give other bits."""
    if torch.get_num_threads() == count:
        return
    torch.set_num_threads(count)
    if torch.get_num_threads() == count:
        say(f"Computing with {count} threads, as the run began.")
    else:
        say(f"The run began with {count} compute threads, which cannot be had: bits will differ.")


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in values.items()}
