"""The number types of a run: what it trains in, what it exports, and calls of a module past its engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""`train.precision` -> the type that training computes in."""


def name_of(dtype: torch.dtype) -> str:
    """What a configuration calls a type: `bf16`."""
    return next((name for name, each in DTYPES.items() if each == dtype), str(dtype).removeprefix("torch."))


def export_dtype(precision: str) -> torch.dtype:
    """The type of a new model's exported weights: bf16 if trained in it, else fp32, which fp16 keeps its weights in."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def training_precision(module: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to the type that a run trains in, for a call that goes past what an engine has prepared.

    Off if all weights are in that type: an engine that has cast them, as DeepSpeed does, trains without it.
    """
    casts = dtype != torch.float32 and any(parameter.dtype != dtype for parameter in module.parameters())
    return torch.autocast(device.type, dtype, enabled=casts)


@contextmanager
def reading(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """A module that is called past its engine: no dropout, no gradients, the precision of training; then as it was."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), training_precision(module, device, dtype):
            yield
    finally:
        module.train(was_training)
