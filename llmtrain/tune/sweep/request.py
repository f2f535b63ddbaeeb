"""What a command line asks a sweep for, and when its budget is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmtrain.tune.sweep.study import TrialRecord
    from llmtrain.tune.sweep.suggest import SamplerName

DEFAULT_TRIALS = 20  # of a search that is not a grid, if no budget is given


@dataclass(frozen=True)
class Budget:
    """When no further trial starts; None: no limit of this kind. A trial that runs is not cut."""

    trials: int | None
    hours: float | None  # of running trials, summed over all processes
    tokens: int | None  # trained on, summed over trials

    def allows(self, records: Sequence[TrialRecord]) -> bool:
        """Whether another trial may start; what runs counts as a mean trial."""
        ended = [record for record in records if record.state != "running"]
        running = len(records) - len(ended)
        seconds = [record.seconds for record in ended]
        tokens = [record.tokens for record in ended]
        spent_seconds = sum(seconds) + running * _mean(seconds)
        spent_tokens = sum(tokens) + running * _mean(tokens)
        return (
            (self.trials is None or len(records) < self.trials)
            and (self.hours is None or spent_seconds < self.hours * 3600)
            and (self.tokens is None or spent_tokens < self.tokens)
        )


@dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    argv: Sequence[str]  # CONFIG and overrides
    recipe: str | None
    space: Path | None  # None: proposed
    budget: Budget
    sampler: SamplerName
    seeds: int
    folder: Path | None
    metric: str
    maximize: bool
    prunes: bool
    keep_best: bool
    launcher: str | None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
