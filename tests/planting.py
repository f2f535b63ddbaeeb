"""Whether a planted run is what its word says, by a person's reading of its raw curves and by what the text can teach.

Nothing of llmtrain's verdict is used, neither statistics nor thresholds. Nor does the verdict know `least_loss`: the
loss on the held-out rows of the source that wrote them, which no model can beat. What is above it is left to learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiny_run

Array = npt.NDArray[np.float64]

FAR, NEAR, SOME = 1.25, 1.1, 1.05  # times the least loss: much is left to learn, little is, something is
CHANGE = 0.2  # of what is left to learn: less is no change
MANY_EPOCHS, ONE_EPOCH = 5, 1.05
LONG = 0.1  # of the training rows
NUM_NEEDLES, NEEDLE_WIDTH = 3, 10  # rows before and after one that sticks out


@dataclass(frozen=True)
class Curves:
    """The raw rows of a run; NaN where a loss was not finite."""

    least_loss: float
    eval_steps: Array
    held_out: Array
    steps: Array
    train: Array
    learning_rates: Array
    epochs: float

    def quarter(self, number: int, *, train: bool = False) -> Array:
        """The evaluations, or the training losses, of a quarter of the steps, 1 to 4."""
        steps, values = (self.steps, self.train) if train else (self.eval_steps, self.held_out)
        share = steps / self.steps[-1]
        return values[(share > (number - 1) / 4) & (share <= number / 4)]

    @cached_property
    def left(self) -> float:
        """What is left to learn: the held-out loss of the last quarter, its middle evaluation, above the least."""
        return float(np.median(self.quarter(4))) - self.least_loss

    @cached_property
    def falls(self) -> bool:
        """The middle evaluation of the last quarter is below all of the quarter before."""
        return bool(np.median(self.quarter(4)) < self.quarter(3).min())

    @cached_property
    def is_level(self) -> bool:
        """It is among those of the quarter before, or the change is less than a fifth of what is left to learn."""
        middle, before = float(np.median(self.quarter(4))), self.quarter(3)
        change = abs(middle - float(np.median(before)))
        return bool(before.min() <= middle <= before.max()) or change < CHANGE * self.left

    @property
    def lowest(self) -> int:
        return int(np.nanargmin(self.held_out))


def curves_of(run: Path, least_loss: float) -> Curves:
    rows = tiny_run.metrics(run)
    evaluations = [row for row in rows if "eval_loss" in row]
    training = [row for row in rows if "eval_loss" not in row]

    def column(of: Sequence[Mapping[str, float | None]], name: str) -> Array:
        return np.array([math.nan if row[name] is None else row[name] for row in of], dtype=float)

    return Curves(
        least_loss=least_loss,
        eval_steps=column(evaluations, "step"),
        held_out=column(evaluations, "eval_loss"),
        steps=column(training, "step"),
        train=column(training, "loss"),
        learning_rates=column(training, "lr"),
        epochs=float(column(training, "epoch")[-1]),
    )


def underfitting(curves: Curves) -> Iterator[tuple[str, bool]]:
    """Stopped early, or slow: much is left to learn, on the rows that it trains on as well, and it still falls."""
    yield "much is left to learn", float(curves.held_out[-1]) > FAR * curves.least_loss
    yield "on training rows too", float(np.median(curves.quarter(4, train=True))) > FAR * curves.least_loss
    yield "held-out loss falls", curves.falls
    yield "no row is seen twice", curves.epochs <= ONE_EPOCH


def healthy(curves: Curves) -> Iterator[tuple[str, bool]]:
    """Little is left to learn, it still falls a little under a rate that has decayed, and no row was seen twice."""
    yield "little is left to learn", float(curves.held_out[-1]) < NEAR * curves.least_loss
    yield "held-out loss falls", curves.falls
    yield "the second half brought little", _at_half(curves) < NEAR * float(curves.held_out[-1])
    yield "the rate has decayed", curves.learning_rates[-1] < curves.learning_rates.max() / 5
    yield "no row is seen twice", curves.epochs <= ONE_EPOCH


def converged(curves: Curves) -> Iterator[tuple[str, bool]]:
    """Little is left to learn, and held-out loss is level though the rate has not decayed."""
    yield "little is left to learn", float(curves.held_out[-1]) < NEAR * curves.least_loss
    yield "held-out loss is level", curves.is_level
    yield "the rate has not decayed", curves.learning_rates[-1] == curves.learning_rates.max()
    yield "no row is seen twice", curves.epochs <= ONE_EPOCH


def overfitting(curves: Curves) -> Iterator[tuple[str, bool]]:
    """The same few rows again and again: held-out loss turned, and what was left to learn grew by a quarter since."""
    best = float(curves.held_out[curves.lowest])
    yield "the data is seen many times", curves.epochs >= MANY_EPOCHS
    yield "the best evaluation is in the first two thirds", curves.eval_steps[curves.lowest] <= curves.steps[-1] * 2 / 3
    yield "a quarter more is left to learn than at the best", curves.left > FAR * (best - curves.least_loss)
    yield "training loss falls", _training_falls(curves)


def data_exhausted(curves: Curves) -> Iterator[tuple[str, bool]]:
    """The same few rows again and again: something is left to learn, held-out loss is level, training falls."""
    best = float(curves.held_out[curves.lowest])
    yield "the data is seen many times", curves.epochs >= MANY_EPOCHS
    yield "something is left to learn", curves.left > (SOME - 1) * curves.least_loss
    yield "held-out loss is level", curves.is_level
    lowest = min(float(np.median(curves.quarter(number))) for number in (2, 3, 4))
    yield "it has not turned", curves.left < (1 + CHANGE) * (lowest - curves.least_loss)
    yield "training loss falls", _training_falls(curves)
    yield "training loss is below all evaluations", _end(curves) < best


def diverged(curves: Curves) -> Iterator[tuple[str, bool]]:
    """For a tenth of the run or more the model is worse than before training."""
    worse = np.isnan(curves.train) | (curves.train > curves.train[0])
    yield "worse than untrained for long", float(worse.mean()) >= LONG or bool(np.isnan(curves.train[-1]))


def spiking(curves: Curves) -> Iterator[tuple[str, bool]]:
    """Single training rows stick out like needles, and the run comes through."""
    needles = sum(_is_needle(curves.train, row) for row in range(len(curves.train) // 4, len(curves.train)))
    yield "three needles or more", needles >= NUM_NEEDLES
    yield "the run comes through", float(curves.held_out[-1]) < FAR * curves.least_loss


def _is_needle(train: Array, row: int) -> bool:
    """Higher than the rows around, two of which may be needles as well, by more than those differ."""
    around = np.sort(np.concatenate([train[max(0, row - NEEDLE_WIDTH) : row], train[row + 1 : row + 1 + NEEDLE_WIDTH]]))
    usual = around[:-2]
    return bool(train[row] - usual[-1] > usual[-1] - usual[0])


def _training_falls(curves: Curves) -> bool:
    return bool(np.median(curves.quarter(4, train=True)) < np.median(curves.quarter(3, train=True)))


def _at_half(curves: Curves) -> float:
    return float(np.interp(curves.steps[-1] / 2, curves.eval_steps, curves.held_out))


def _end(curves: Curves) -> float:
    return float(np.median(curves.quarter(4, train=True)))


DEFINITIONS: Mapping[str, Callable[[Curves], Iterator[tuple[str, bool]]]] = {
    "underfitting": underfitting,
    "healthy": healthy,
    "converged": converged,
    "overfitting": overfitting,
    "diverged": diverged,
    "spiking": spiking,
    "data exhausted": data_exhausted,
}


def missing(word: str, curves: Curves) -> list[str]:
    """What a planted run lacks to be what its word says; empty: the plant is good."""
    return [what for what, holds in DEFINITIONS[word](curves) if not holds]
