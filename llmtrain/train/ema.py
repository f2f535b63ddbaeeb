"""The exponential moving average of the weights, which is evaluated and exported in place of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of trainable weights, in fp32: average = decay * average + (1 - decay) * weight.

    Early on the decay is min(decay, (1 + step) / (10 + step)), so the average forgets the initial weights
    (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after `step` (from 1) into the average."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        current = [parameter.float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average for its weights within this context."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights with the average; a second call undoes it exactly."""
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name] = kept.float()

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a saved average. Raises KeyError if a parameter is missing."""
        for name, average in self.average.items():
            average.copy_(tensors[name])
