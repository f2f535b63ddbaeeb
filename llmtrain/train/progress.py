"""Where a run stands: its steps, its clocks, its best evaluation; saved with every checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Progress:
    """What a resumed run goes on from. Seconds count over restarts."""

    step: int = 0
    tokens: int = 0  # trained, over all ranks
    train_seconds: float = 0.0  # inside optimizer steps, data included
    elapsed_seconds: float = 0.0  # since the start
    evaluated_step: int = -1
    best_loss: float | None = None
    evaluations_since_best: int = 0

    def __post_init__(self) -> None:
        self._ticked = time.perf_counter()

    def row(self) -> dict[str, float | int]:
        """What every row of `metrics.jsonl` starts with, up to now."""
        now = time.perf_counter()
        self.elapsed_seconds += now - self._ticked
        self._ticked = now
        return {
            "step": self.step,
            "elapsed_seconds": self.elapsed_seconds,
            "train_seconds": self.train_seconds,
        }

    def evaluated(self, loss: float) -> bool:
        """Enter the evaluation of this step; whether its loss is the lowest so far."""
        self.evaluated_step = self.step
        is_best = self.best_loss is None or loss < self.best_loss
        if is_best:
            self.best_loss = loss
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        return is_best

    def clocks(self) -> dict[str, float]:
        """Those parts of the state that go on whatever step a run goes back to."""
        self.row()
        return {"elapsed_seconds": self.elapsed_seconds, "train_seconds": self.train_seconds}

    def state_dict(self) -> dict[str, Any]:
        self.row()  # brings the clock up to date
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; its clock goes on from when this process last looked at its own."""
        for name, value in state.items():
            setattr(self, name, value)
