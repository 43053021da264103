"""How residual connections change the signal: activations forward, gradients backward.

Three experiments on small images, each taking at most a minute on a CPU:

- stacks of linear layers, where a product of many factors below or above one vanishes or explodes;
- plain and residual nets, with and without batch norm, before and after some training steps;
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

STACK_DEPTH = 60
STACK_WIDTH = 64
# Name, activation, gain g in N(0, g^2 / fan_in) for the weights, and whether shortcuts are added.
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
WIDTH = 8  # channels of the first stage
SIDE = 16  # pixels
BATCH = 64


@dataclass(frozen=True)
class Layer:
    """The signal at a convolution or linear layer.

    Args:
        name: the module's name.
        activation: standard deviation of the output.
        backward: L2 norm of the loss's gradient with respect to the output.
        gradient: L2 norm of the loss's gradient with respect to the weights.
    """

    name: str
    activation: float
    backward: float
    gradient: float


@dataclass(frozen=True)
class Signal:
    """The signal in a network; values that overflowed are ``inf`` or ``nan``.

    Args:
        net: name of the network.
        before: its layers before the first training step.
        after: its layers after the last step.
        losses: the loss at every step.
    """

    net: str
    before: tuple[Layer, ...]
    after: tuple[Layer, ...]
    losses: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return len(self.losses)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data; infinite numbers and NaN become ``"inf"`` and ``"nan"``."""
        return dict(_to_json_data(asdict(self)))


@dataclass(frozen=True)
class Responses:
    """Standard deviations of the responses of a network's 3x3 layers, in order (figure 7).

    A response is taken after the norm and before ReLU and addition.
    """

    net: str
    values: tuple[float, ...]


class Stack(nn.Module):
    """Linear layers of equal width, each followed by an activation.

    Maps (N, C, H, W) to (N, classes).

    Args:
        pixels: C * H * W.
        depth: number of hidden layers.
        width: units per hidden layer.
        activation: a module class.
        gain: weights are drawn from N(0, gain^2 / fan_in).
        residual: compute ``y = x + activation(W x)`` instead of ``y = activation(W x)``.
        classes: number of outputs.
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
        self.activation = activation()
        self.residual = residual
        nn.init.normal_(self.first.weight, std=1 / math.sqrt(pixels))
        for weight in self.hidden.parameters():
            nn.init.normal_(weight, std=gain / math.sqrt(width))
        nn.init.normal_(
            self.last.weight, std=0.1 / math.sqrt(width)
        )  # initial loss near log(classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W)."""
        x = self.first(x.flatten(1))  # (N, width)
        for layer in self.hidden:
            out = self.activation(layer(x))
            x = x + out if self.residual else out
        return self.last(x)  # type: ignore[no-any-return]


def measure(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Layer, ...]:
    """Measure every layer in one forward and one backward pass, in training mode.

    Parameters do not change.

    Args:
        network: the network.
        images: (N, C, H, W) float.
        labels: (N,) int64.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in name
    }
    activations: dict[str, float] = {}
    backwards: dict[str, float] = {}

    def record(name: str, module: nn.Module, inputs: Any, out: Tensor) -> None:
        # Read now: an in-place ReLU may overwrite the output.
        activations[name] = float(out.detach().std())
        out.register_hook(  # type: ignore[no-untyped-call]
            lambda grad: backwards.__setitem__(name, _norm(grad))
        )

    handles = [m.register_forward_hook(partial(record, name)) for name, m in layers.items()]
    network.zero_grad()
    with in_mode(network, training=True):
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    for handle in handles:
        handle.remove()
    measured = tuple(
        Layer(
            name,
            activations[name],
            backward=backwards[name],
            gradient=_norm(module.weight.grad),
        )
        for name, module in layers.items()
    )
    network.zero_grad()
    return measured


def _norm(gradient: Tensor | None) -> float:
    assert gradient is not None
    return float(gradient.double().norm())  # float64: squares of fp32 values may overflow fp32


def fit(
    network: nn.Module, images: Tensor, labels: Tensor, steps: int, lr: float, seed: int
) -> tuple[float, ...]:
    """Train with SGD (momentum 0.9) on batches of 64, and return the loss at each step.

    Training continues even if the loss is not finite.
    """
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    losses = []
    network.train()
    for step in range(steps):
        epoch, start = divmod(step * BATCH, max(BATCH, len(labels) // BATCH * BATCH))
        order = torch.from_numpy(randomness.permutation(seed, epoch, len(labels)))
        indices = order[start : start + BATCH]
        loss = F.cross_entropy(network(images[indices]), labels[indices])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return tuple(losses)


def measure_training(
    net: str,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    lr: float,
    seed: int,
) -> Signal:
    """Measure a network on the first batch, train it for ``steps``, and measure it again."""
    before = measure(network, images[:BATCH], labels=labels[:BATCH])
    losses = fit(network, images, labels=labels, steps=steps, lr=lr, seed=seed)
    after = measure(network, images[:BATCH], labels=labels[:BATCH])
    return Signal(net, before, after=after, losses=losses)


def _class_count(labels: Tensor) -> int:
    return int(labels.max()) + 1


@randomness.preserve_generators()
def stacks(images: Tensor, labels: Tensor, steps: int, seed: int) -> list[Signal]:
    """Measure the stacks of linear layers, which have no norm."""
    signals = []
    for net, activation, gain, residual in STACKS:
        torch.manual_seed(seed)
        pixels = images[0].numel()
        network = Stack(
            pixels,
            STACK_DEPTH,
            width=STACK_WIDTH,
            activation=activation,
            gain=gain,
            residual=residual,
            classes=_class_count(labels),
        )
        signals.append(
            measure_training(net, network, images, labels, steps=steps, lr=0.003, seed=seed)
        )
    return signals


@randomness.preserve_generators()
def nets(images: Tensor, labels: Tensor, steps: int, seed: int) -> list[Signal]:
    """Measure plain and residual nets with 56 layers, with and without batch norm."""
    signals = []
    for net, name, has_norm in NETS:
        options: dict[str, Any] = {} if has_norm else {"norm_layer": nn.Identity}
        torch.manual_seed(seed)
        network = get_model(name, width=WIDTH, num_classes=_class_count(labels), **options)
        signals.append(
            measure_training(net, network, images, labels, steps=steps, lr=0.05, seed=seed)
        )
    return signals


def responses(net: str, network: nn.Module, images: Tensor) -> Responses:
    """Measure figure 7 for a network, with the batch statistics of ``images`` (N, C, H, W)."""
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
    """Measure figure 7 after some steps of training."""
    measured = []
    for name in RESPONDING:
        torch.manual_seed(seed)
        network = get_model(name, width=WIDTH, num_classes=_class_count(labels))
        fit(network, images, labels=labels, steps=steps, lr=0.05, seed=seed)
        measured.append(responses(name, network, images=images[:BATCH]))
    return measured


def signal_table(signals: Sequence[Signal], what: str = "gradient") -> str:
    """Return a table of the first and last hidden layers before the first step, and of the loss.

    Args:
        signals: the networks, one per row.
        what: the gradient to show, ``gradient`` or ``backward`` of a `Layer`.
    """
    gradient_of = {"gradient": "gradient of the weights", "backward": "gradient of the output"}[
        what
    ]
    lines = [
        f"{'':26}{'std of the output':>21}{gradient_of:>25}{'loss':>19}",
        f"{'':26}{'first':>12}{'last':>9}{'first':>14}{'last':>9}{'start':>12}{'end':>9}",
    ]
    for signal in signals:
        first, last = signal.before[0], signal.before[-2]  # [-1] is the head
        lines.append(
            f"{signal.net:26}{first.activation:12.2g}{last.activation:9.2g}"
            f"{getattr(first, what):14.2g}{getattr(last, what):9.2g}"
            f"{signal.losses[0]:12.4g}{signal.losses[-1]:9.4g}"
        )
    return "\n".join(lines)


def response_table(found: Sequence[Responses]) -> str:
    """Return the mean and largest response of each network as text."""
    lines = [f"{'std of the responses':26}{'mean':>8}{'largest':>10}{'layers':>8}"]
    for each in found:
        mean = sum(each.values) / len(each.values)
        lines.append(f"{each.net:26}{mean:8.3f}{max(each.values):10.3f}{len(each.values):8}")
    return "\n".join(lines)


def to_dict(
    stacks: Sequence[Signal], nets: Sequence[Signal], found: Sequence[Responses]
) -> dict[str, Any]:
    """Return all measurements as JSON data."""
    return {
        "stacks": [signal.to_dict() for signal in stacks],
        "nets": [signal.to_dict() for signal in nets],
        "responses": _to_json_data({each.net: each.values for each in found}),
    }


def _to_json_data(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_json_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_data(item) for item in value]
    if isinstance(value, float):  # the measurement does not support more digits
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value
