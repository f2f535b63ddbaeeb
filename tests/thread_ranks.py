"""Ranks that are threads of this process, for tests of what ranks compute together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Found = TypeVar("Found")
SECONDS = 60  # that a thread waits for the others


class Rank:
    """One of them."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier, given: dict[int, Any]) -> None:
        self.rank, self.world_size = rank, world_size
        self._barrier, self._given = barrier, given

    def _all(self, mine: Any) -> list[Any]:
        self._barrier.wait(SECONDS)
        self._given[self.rank] = mine
        self._barrier.wait(SECONDS)
        return [self._given[rank] for rank in range(self.world_size)]

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self._all(list(values)), strict=True)]

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        return self._all(list(values))

    def gather_to_main(self, values: Tensor) -> list[Tensor]:
        gathered = self._all(values)
        return [] if self.rank else gathered

    def any(self, flag: bool) -> bool:
        return self.sum_floats([float(flag)])[0] > 0

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()


def on_ranks(world_size: int, each: Callable[[Any], Found]) -> list[Found | Exception]:
    """What each rank returns or raises; whoever waits for a rank that has raised gets a BrokenBarrierError."""
    barrier, given = threading.Barrier(world_size), dict[int, Any]()
    found: dict[int, Found | Exception] = {}

    def one(rank: int) -> None:
        try:
            found[rank] = each(Rank(rank, world_size, barrier, given))
        except Exception as error:
            found[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SECONDS)
    return [found[rank] for rank in range(world_size)]
