"""The collectives that a rollout needs, as the runtime has them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn


class Ranks(Protocol):
    """The processes that make a rollout together."""

    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype  # that training computes in

    def sum_floats(self, values: Sequence[float]) -> list[float]: ...
    def gather_floats(self, values: Sequence[float]) -> list[list[float]]: ...
    def gather_to_main(self, values: Tensor) -> list[Tensor]: ...
    def any(self, flag: bool) -> bool: ...
    def gathered(self, module: nn.Module) -> AbstractContextManager[None]: ...
