"""Steps that went wrong: how many non-finite ones in a row are too many, and which loss is a spike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SPIKE_HISTORY_STEPS = 20  # steps before the running mean is trusted
SPIKE_MEAN_DECAY = 0.98
MAX_ROLLBACKS = 3  # to one checkpoint; a spike that comes back whatever the data is has another cause


@dataclass
class StepGuard:
    """Counts steps that were skipped for a non-finite loss or gradient, and recognises loss spikes.

    The running mean is a bias-corrected exponential mean of the losses of applied steps.
    """

    max_nonfinite_steps: int
    spike_factor: float | None
    nonfinite_in_row: int = 0
    nonfinite_total: int = 0
    mean: float = 0.0
    weight: float = 0.0
    steps: int = 0
    rollbacks: int = 0  # since the last save; not part of the state

    def skip(self, step: int, sample_ids: Sequence[int]) -> str:
        """Count a step that was not applied; returns the line to log. Raises ValueError after too many in a row."""
        self.nonfinite_in_row += 1
        self.nonfinite_total += 1
        named = f"{min(sample_ids)} to {max(sample_ids)}" if sample_ids else "of other ranks"
        line = f"step {step}: loss or gradient not finite, step skipped (samples {named})"
        if self.nonfinite_in_row >= self.max_nonfinite_steps:
            raise ValueError(
                f"{line}; that is {self.nonfinite_in_row} in a row, train.max_nonfinite_steps: "
                "lower optim.lr, or look at these samples"
            )
        return line

    @property
    def running_mean(self) -> float:
        """Of the losses so far, of which there is one at least."""
        return self.mean / self.weight

    def is_spike(self, loss: float) -> bool:
        """Whether the loss of an applied step is a spike; one that is not finite is."""
        if self.spike_factor is None or self.steps < SPIKE_HISTORY_STEPS:
            return False
        return not loss <= self.spike_factor * self.running_mean

    def accept(self, loss: float) -> None:
        """Count an applied step that is not a spike: it ends a row of skipped ones, and its loss joins the mean."""
        self.nonfinite_in_row = 0
        if self.spike_factor is not None and math.isfinite(loss):  # the mean would be NaN from then on
            self.mean = SPIKE_MEAN_DECAY * self.mean + (1 - SPIKE_MEAN_DECAY) * loss
            self.weight = SPIKE_MEAN_DECAY * self.weight + (1 - SPIKE_MEAN_DECAY)
            self.steps += 1

    def record_spike(self, step: int, loss: float, to_step: int) -> str:
        """Count a roll-back after a spike; returns the line to log. Raises ValueError after too many in a row."""
        self.rollbacks += 1
        line = f"step {step}: loss {loss:.4f} is a spike (mean {self.running_mean:.4f})"
        if self.rollbacks > MAX_ROLLBACKS:
            raise ValueError(
                f"{line}, after {MAX_ROLLBACKS} rollbacks to step {to_step}: it is not this data; lower optim.lr "
                "or raise train.spike_factor"
            )
        return f"{line}; rolled back to step {to_step}, its samples are skipped from now on"

    def reset_rollbacks(self) -> None:
        """Count roll-backs from zero: there is a new checkpoint to go back to."""
        self.rollbacks = 0

    def metrics(self) -> dict[str, int]:
        """For the step's row, once there is something to report."""
        return {"nonfinite_steps": self.nonfinite_total} if self.nonfinite_total else {}

    def state_dict(self) -> dict[str, float]:
        return {
            "nonfinite_in_row": self.nonfinite_in_row,
            "nonfinite_total": self.nonfinite_total,
            "mean": self.mean,
            "weight": self.weight,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.nonfinite_in_row, self.nonfinite_total = int(state["nonfinite_in_row"]), int(state["nonfinite_total"])
        self.mean, self.weight, self.steps = state["mean"], state["weight"], int(state["steps"])
