"""What can go wrong in a step, and what the loop does about it: signals, non-finite steps, loss spikes."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

SPIKE_HISTORY_STEPS = 20  # steps before the running mean is trusted
SPIKE_MEAN_DECAY = 0.98
MAX_ROLLBACKS = 3  # to one checkpoint; a spike that comes back whatever the data is has another cause


class StopSignal:
    """SIGTERM or SIGUSR1 sets `requested`; the loop sees it at the next step, saves and returns.

    More of them change nothing: launchers and schedulers may each send their own.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)


@dataclass
class StepGuard:
    """Counts steps that were skipped for a non-finite loss or gradient, and notices loss spikes.

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

    def skipped(self, step: int, sample_ids: Sequence[int]) -> str:
        """Account for a skipped step; the line for the log. Raises ValueError after too many in a row."""
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

    def spiked(self, loss: float) -> bool:
        """Whether the loss of an applied step is a spike; if it is not, it joins the running mean."""
        self.nonfinite_in_row = 0
        if self.spike_factor is None:
            return False
        if self.steps >= SPIKE_HISTORY_STEPS and loss > self.spike_factor * self.mean / self.weight:
            return True
        self.mean = SPIKE_MEAN_DECAY * self.mean + (1 - SPIKE_MEAN_DECAY) * loss
        self.weight = SPIKE_MEAN_DECAY * self.weight + (1 - SPIKE_MEAN_DECAY)
        self.steps += 1
        return False

    def rolled_back(self, step: int, loss: float, to_step: int) -> str:
        """Account for going back after a spike; the line for the log. Raises ValueError after too many times."""
        self.rollbacks += 1
        line = f"step {step}: loss {loss:.4f} is a spike (mean {self.mean / self.weight:.4f})"
        if self.rollbacks > MAX_ROLLBACKS:
            raise ValueError(
                f"{line}, after {MAX_ROLLBACKS} rollbacks to step {to_step}: it is not this data; lower optim.lr "
                "or raise train.spike_factor"
            )
        return f"{line}; rolled back to step {to_step}, its samples are skipped from now on"

    def saved(self) -> None:
        """A checkpoint was written: rollbacks to it are counted anew."""
        self.rollbacks = 0

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
