"""How far a run has come: its steps, its clocks, its best evaluation; saved with every checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Progress:
    """What a resumed run continues from. Seconds count over restarts."""

    step: int = 0
    tokens: int = 0  # trained, over all ranks
    train_seconds: float = 0.0  # inside optimizer steps, data included
    elapsed_seconds: float = 0.0  # since the start, up to the last `tick`
    evaluated_step: int = -1
    best_loss: float | None = None
    evaluations_since_best: int = 0

    def __post_init__(self) -> None:
        self._ticked = time.perf_counter()

    def tick(self) -> None:
        """Bring `elapsed_seconds` up to date."""
        now = time.perf_counter()
        self.elapsed_seconds += now - self._ticked
        self._ticked = now

    @property
    def row(self) -> dict[str, float | int]:
        """Where and when: the start of every row of `metrics.jsonl`."""
        return {"step": self.step} | self.clocks

    @property
    def position(self) -> tuple[int, int]:
        """Steps trained, and the step last evaluated: a checkpoint of the same position holds nothing else."""
        return self.step, self.evaluated_step

    @property
    def clocks(self) -> dict[str, float]:
        """The part of the state that a roll-back does not turn back."""
        return {"elapsed_seconds": self.elapsed_seconds, "train_seconds": self.train_seconds}

    def is_best(self, loss: float) -> bool:
        """Whether an evaluation's loss is lower than all finite ones before; one that is not finite never is."""
        return math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)

    def is_out_of(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row were no better than the best before; None: never."""
        return patience is not None and self.evaluations_since_best >= patience

    def record_evaluation(self, loss: float) -> None:
        """Enter the evaluation of this step, made just now."""
        self.tick()
        self.evaluated_step = self.step
        self.evaluations_since_best = 0 if self.is_best(loss) else self.evaluations_since_best + 1
        self.best_loss = loss if self.is_best(loss) else self.best_loss

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; the clock continues from this process's last `tick`."""
        for name, value in state.items():
            setattr(self, name, value)
        if self.best_loss is not None and not math.isfinite(self.best_loss):  # saved by an earlier version
            self.best_loss = None
