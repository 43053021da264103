from __future__ import annotations

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
