"""The moving average of the weights."""

import torch
from torch import nn

from llmtrain.train.ema import Ema


def test_ema_follows_its_equation_and_swaps_exactly() -> None:
    model = nn.Linear(2, 2, bias=False)
    ema = Ema(model, decay=0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            model.weight.add_(1.0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        ema.update(step)
    torch.testing.assert_close(ema.average["weight"], expected)
    before, average = model.weight.detach().clone(), ema.average["weight"].clone()
    ema.swap()
    assert torch.equal(model.weight, average)
    ema.swap()
    assert torch.equal(model.weight, before) and torch.equal(ema.average["weight"], average)
