"""What residual connections do to the signal: activations forward, gradients backward.

Three experiments on small pictures, each a minute of a CPU or less:

- stacks of linear layers, where a product of many factors below or above one vanishes or explodes;
- plain and residual nets, with and without batch norm, before and after some steps of training;
- the responses of the 3x3 layers, figure 7 of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import randomness
from ..models import get_model
from ..models.modes import in_mode

STACK_DEPTH, STACK_WIDTH = 60, 64
# Name, activation, gain g of weights ~ N(0, g^2 / fan_in), with identity shortcuts or without.
STACKS: tuple[tuple[str, type[nn.Module], float, bool], ...] = (
    ("tanh, gain 0.5", nn.Tanh, 0.5, False),
    ("tanh, gain 1", nn.Tanh, 1.0, False),
    ("ReLU, gain 1", nn.ReLU, 1.0, False),
    ("ReLU, gain sqrt(2) (He)", nn.ReLU, math.sqrt(2), False),
    ("ReLU, gain 8", nn.ReLU, 8.0, False),
    ("tanh, gain 0.5, residual", nn.Tanh, 0.5, True),
)
NETS = (
    ("plain-56, batch norm", "cifar_plain56", True),
    ("ResNet-56, batch norm", "cifar_resnet56", True),
    ("plain-56, no norm", "cifar_plain56", False),
    ("ResNet-56, no norm", "cifar_resnet56", False),
)
RESPONDING = ("cifar_plain20", "cifar_plain56", "cifar_resnet20", "cifar_resnet56")
WIDTH, SIDE, BATCH = 8, 16, 64


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer: standard deviation of its output, L2 norms of the loss's
    gradients with respect to that output (``backward``) and to its weights (``gradient``)."""

    name: str
    activation: float
    backward: float
    gradient: float


@dataclass(frozen=True)
class Signal:
    """A network: its layers before the first step and after the last one (of ``steps``), and the
    loss at every step. What overflowed is ``inf`` or ``nan``."""

    net: str
    before: tuple[Layer, ...]
    after: tuple[Layer, ...]
    losses: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.losses)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, which has no infinite numbers: they become ``"inf"`` and ``"nan"``."""
        return dict(_plain(asdict(self)))


@dataclass(frozen=True)
class Responses:
    """Standard deviations of the responses of a network's 3x3 layers, in their order: behind the
    norm, before ReLU and addition (figure 7)."""

    net: str
    values: tuple[float, ...]


class Stack(nn.Module):
    """Linear layers of one width with an activation behind each: (N, C, H, W) -> (N, classes).

    Args:
        pixels: numbers in a picture.
        depth, width: hidden layers, and numbers in each.
        activation: a module class.
        gain: weights are drawn from N(0, gain^2 / fan_in).
        residual: ``y = x + activation(W x)`` instead of ``y = activation(W x)``.
    """

    def __init__(
        self,
        pixels: int,
        depth: int,
        width: int,
        activation: type[nn.Module],
        gain: float,
        residual: bool = False,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.last = nn.Linear(width, classes, bias=False)
        self.activation, self.residual = activation(), residual
        nn.init.normal_(self.first.weight, std=1 / math.sqrt(pixels))
        for weight in self.hidden.parameters():
            nn.init.normal_(weight, std=gain / math.sqrt(width))
        nn.init.normal_(self.last.weight, std=0.1 / math.sqrt(width))  # a loss near log(classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))  # (N, width)
        for layer in self.hidden:
            out = self.activation(layer(x))
            x = x + out if self.residual else out
        return self.last(x)  # type: ignore[no-any-return]


def measure(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Layer, ...]:
    """One forward and one backward pass in training mode; parameters stay as they are.

    Args:
        images: (N, C, H, W) float.
        labels: (N,) int64.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in name
    }
    spread: dict[str, float] = {}
    back: dict[str, float] = {}

    def record(name: str, module: nn.Module, inputs: Any, out: Tensor) -> None:
        spread[name] = float(out.detach().std())  # at once: what comes next may overwrite it
        out.register_hook(  # type: ignore[no-untyped-call]
            lambda grad: back.__setitem__(name, _norm(grad))
        )

    handles = [m.register_forward_hook(partial(record, name)) for name, m in layers.items()]
    network.zero_grad()
    with in_mode(network, training=True):
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    for handle in handles:
        handle.remove()
    found = tuple(
        Layer(name, spread[name], back[name], _norm(module.weight.grad))
        for name, module in layers.items()
    )
    network.zero_grad()
    return found


def _norm(gradient: Tensor | None) -> float:
    assert gradient is not None
    return float(gradient.double().norm())  # a square that overflows is no infinite gradient


def fit(
    network: nn.Module, images: Tensor, labels: Tensor, steps: int, lr: float, seed: int
) -> tuple[float, ...]:
    """Steps of SGD with momentum 0.9 on batches of 64; the loss at each. Nothing stops it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    losses = []
    network.train()
    for step in range(steps):
        epoch, place = divmod(step * BATCH, max(BATCH, len(labels) // BATCH * BATCH))
        chosen = torch.from_numpy(randomness.order(seed, epoch, len(labels)))[place : place + BATCH]
        loss = F.cross_entropy(network(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return tuple(losses)


def watch(
    net: str,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    lr: float,
    seed: int,
) -> Signal:
    """Measure a network, train it for ``steps`` on everything, and measure it again."""
    batch = images[:BATCH], labels[:BATCH]
    before = measure(network, *batch)
    losses = fit(network, images, labels, steps, lr, seed)
    return Signal(net, before, measure(network, *batch), losses)


@randomness.preserve_generators()
def stacks(images: Tensor, labels: Tensor, steps: int, seed: int) -> list[Signal]:
    """The stacks of linear layers, without any norm."""
    found = []
    for net, activation, gain, residual in STACKS:
        torch.manual_seed(seed)
        pixels = images[0].numel()
        network = Stack(pixels, STACK_DEPTH, STACK_WIDTH, activation, gain, residual)
        found.append(watch(net, network, images, labels, steps=steps, lr=0.003, seed=seed))
    return found


@randomness.preserve_generators()
def nets(images: Tensor, labels: Tensor, steps: int, seed: int) -> list[Signal]:
    """Plain and residual nets of 56 layers, with and without batch norm."""
    found = []
    for net, name, normed in NETS:
        options: dict[str, Any] = {} if normed else {"norm_layer": nn.Identity}
        torch.manual_seed(seed)
        network = get_model(name, width=WIDTH, **options)
        found.append(watch(net, network, images, labels, steps=steps, lr=0.05, seed=seed))
    return found


def responses(net: str, network: nn.Module, images: Tensor) -> Responses:
    """Figure 7 of one network, with the statistics of the batch ``images`` (N, C, H, W)."""
    values: list[float] = []
    handles = [
        module.register_forward_hook(lambda m, i, out: values.append(out.detach().std().item()))
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and "downsample" not in name
    ]
    with in_mode(network, training=True), torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return Responses(net, tuple(values))


@randomness.preserve_generators()
def trained_responses(images: Tensor, labels: Tensor, steps: int, seed: int) -> list[Responses]:
    """Figure 7 after some steps of training."""
    found = []
    for name in RESPONDING:
        torch.manual_seed(seed)
        network = get_model(name, width=WIDTH)
        fit(network, images, labels, steps, 0.05, seed)
        found.append(responses(name, network, images[:BATCH]))
    return found


def signal_table(signals: Sequence[Signal], what: str = "gradient") -> str:
    """First and last hidden layer of each network before the first step, and its loss: text.
    ``what`` is the gradient that is shown: ``gradient`` or ``backward`` of a `Layer`."""
    of = {"gradient": "gradient of the weights", "backward": "gradient of the output"}[what]
    lines = [
        f"{'':26}{'std of the output':>21}{of:>25}{'loss':>19}",
        f"{'':26}{'first':>12}{'last':>9}{'first':>14}{'last':>9}{'start':>12}{'end':>9}",
    ]
    for signal in signals:
        first, last = signal.before[0], signal.before[-2]  # behind it comes the head
        lines.append(
            f"{signal.net:26}{first.activation:12.2g}{last.activation:9.2g}"
            f"{getattr(first, what):14.2g}{getattr(last, what):9.2g}"
            f"{signal.losses[0]:12.4g}{signal.losses[-1]:9.4g}"
        )
    return "\n".join(lines)


def response_table(found: Sequence[Responses]) -> str:
    """Mean and greatest response of each network: text."""
    lines = [f"{'std of the responses':26}{'mean':>8}{'greatest':>10}{'layers':>8}"]
    for one in found:
        mean = sum(one.values) / len(one.values)
        lines.append(f"{one.net:26}{mean:8.3f}{max(one.values):10.3f}{len(one.values):8}")
    return "\n".join(lines)


def to_dict(
    stacks: Sequence[Signal], nets: Sequence[Signal], found: Sequence[Responses]
) -> dict[str, Any]:
    """Everything that was measured, as JSON."""
    return {
        "stacks": [signal.to_dict() for signal in stacks],
        "nets": [signal.to_dict() for signal in nets],
        "responses": _plain({one.net: one.values for one in found}),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):  # measured to no more than this
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value
