"""Which rank is slow: of each step, the seconds that every rank computes before it first waits for the others.

A step of an engine is as slow as its slowest rank, and each rank sees only that all take long. What differs is the time
that a rank takes for its data, and for its microbatches up to the last forward pass. Engines that shard weights
(ZeRO-3, FSDP) make ranks wait in every layer, so there only slow data is seen.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch

WINDOW_STEPS = 20
SLOW_FACTOR = 3.0  # times as long as the median of the others
LEAST_SECONDS = 0.02  # longer than they take; below it nothing is gained
QUIET_SECONDS = 1800.0  # between two lines


class SlowRank(NamedTuple):
    """A rank that all others wait for."""

    rank: int
    seconds: float  # that it computes in a step, the median of the last steps
    others: float  # that the others do

    @property
    def reason(self) -> str:
        """What is wrong, and where to look."""
        return (
            f"computes for {self.seconds:.2g} s of each step before the others, which need {self.others:.2g} s, can go "
            "on: look at its disk, its temperature and what else runs there"
        )


class Stopwatch:
    """Measures this rank's share of a step: on the host its data, on its device the forward passes."""

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._freed = time.perf_counter()  # when this rank last stopped waiting for the others
        self._data_seconds = self._seconds = 0.0

    def step_ends(self) -> None:
        """The step's sums are known; its time on the device too."""
        self._freed = time.perf_counter()

    def data_is_ready(self) -> None:
        """The microbatches of a step are made."""
        self._data_seconds = time.perf_counter() - self._freed

    def forward_begins(self) -> None:
        """All ranks have their microbatches."""
        self._freed = time.perf_counter()
        if self._events:
            self._events[0].record()

    def forward_ends(self) -> None:
        """The last forward pass is done: now ranks wait for each other."""
        self._seconds = self._data_seconds + time.perf_counter() - self._freed
        if self._events:
            self._events[1].record()

    def seconds(self) -> float:
        """Of the last step; call it after the step's end."""
        if not self._seconds or not self._events or not self._events[1].query():
            return self._seconds
        return self._data_seconds + self._events[0].elapsed_time(self._events[1]) / 1000


class SlowRanks:
    """Finds a rank that takes several times as long as the others, over many steps; names one once in a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps: deque[Sequence[float]] = deque(maxlen=WINDOW_STEPS)
        self._quiet_until = -QUIET_SECONDS

    def add(self, seconds: Sequence[float]) -> SlowRank | None:
        """Count a step, of which each rank took so long; the rank that is named now."""
        self._steps.append(seconds)
        if len(self._steps) < WINDOW_STEPS or self._clock() < self._quiet_until:
            return None
        usual = [median(step[rank] for step in self._steps) for rank in range(len(seconds))]
        rank = max(range(len(usual)), key=usual.__getitem__)
        others = median(usual[:rank] + usual[rank + 1 :])
        if usual[rank] < SLOW_FACTOR * others or usual[rank] - others < LEAST_SECONDS:
            return None
        self._quiet_until = self._clock() + QUIET_SECONDS
        return SlowRank(rank, usual[rank], others)
