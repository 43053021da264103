from __future__ import annotations

import pytest
import torch

from resnetkit.models import get_model
from resnetkit.training.ema import ModelEma


def test_it_is_the_moving_average_in_float64():
    model = get_model("cifar_resnet20", width=4)
    average = ModelEma(model, 0.9)
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    for step in range(30):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(1) if value.dtype == torch.int64 else value.add_(torch.randn_like(value))
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in average.model.state_dict().items():
        if value.dtype == torch.int64:
            assert value == 30
        else:
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-5)
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())


@pytest.mark.parametrize("decay", [0.5, 0.98])
def test_rare_updates_warm_up_by_their_own_number_and_include_the_last_step(decay):
    """Compare with the weighted sum of all weights, in float64, over 75 steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    average = ModelEma(model, decay, every=8)
    weights = [model.weight.detach().double().clone()]
    for step in range(75):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(model, step, is_last=step == 74)
        weights.append(model.weight.detach().double().clone())
    averaged = [0, 1, 9, 17, 25, 33, 41, 49, 57, 65, 73, 75]  # the initial weights, then 11 updates
    shares = torch.ones(1).double()
    for number in range(11):
        kept = min(decay, (1 + number) / (10 + number))
        shares = torch.cat([shares * kept, torch.tensor([1 - kept]).double()])
    assert float(shares.sum()) == pytest.approx(1)
    expected = sum(share * weights[i] for share, i in zip(shares, averaged, strict=True))
    torch.testing.assert_close(average.model.weight.double(), expected, rtol=1e-5, atol=1e-5)
