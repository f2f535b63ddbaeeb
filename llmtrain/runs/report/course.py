"""The course of a run: its curves as arrays, in which lower is better, against the training done.

Training done at a step is the sum of the learning rates up to it, over that of all steps so far: a curve that is flat
because the learning rate has fallen to nothing is not flat against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmtrain.runs.record import RunRecord
from llmtrain.runs.rows import Row, Rows
from llmtrain.statistics.intervals import NORMAL_95
from llmtrain.statistics.trend import noise, rolling_median
from llmtrain.system.run_files import METRICS_FILE
from llmtrain.system.typing import Array

LEAST_WIDTH, WIDTH_SHARE = 5, 0.05  # rows of the window that training rows are smoothed with
LATE_SHARE = 0.25  # of the training done: the part whose gain says whether more would bring more
LEAST_EVALUATIONS = 9  # from which noise is estimated
MEDIAN_OVER_MEAN = 1.2533  # sqrt(pi / 2): the standard deviation of a median over that of a mean


@dataclass(frozen=True)
class Measure:
    """A quantity of the rows: its field, what people call it, and its sign where lower is better."""

    field: str
    name: str
    sign: float = 1.0

    def show(self, value: float) -> str:
        """A value as people read it."""
        return f"{self.sign * value:.4g}"

    @property
    def source(self) -> str:
        return f"({METRICS_FILE}: {self.field})"

    def of(self, rows: Sequence[Row]) -> Array:
        """The value in each row; NaN where a row has none, or one that was not finite."""
        return self.sign * Rows.of(rows).values(self.field)


TRAIN_LOSS, HELD_OUT_LOSS = Measure("loss", "training loss"), Measure("eval_loss", "held-out loss")
TRAIN_SCORE = Measure("rollout_score", "score of the rollouts", -1.0)
STEP = Measure("step", "step")
HELD_OUT_SCORE = Measure("eval_score", "held-out score", -1.0)


@dataclass(frozen=True)
class Course:
    """The curves of a run. Training rows: (rows,); evaluations: (evaluations,), of which only those that are finite."""

    recipe: str
    steps: Array
    train: Array  # NaN: not finite
    learning_rates: Array
    eval_steps: Array
    held_out: Array
    interval: float  # half the 95 % interval of a held-out score; 0: a loss over the same rows each time
    epochs: float  # how many times the data has been seen; NaN: undefined
    last_is_finite: bool  # of the evaluations
    lr_keys: str = "`optim.lr`"  # what to change for other learning rates

    @property
    def is_policy(self) -> bool:
        return self.recipe == "policy"

    @property
    def is_per_token(self) -> bool:
        """Whether the loss is nats per token: it starts high, and falls most in its first steps."""
        return self.recipe in ("pretrain", "sft")

    @property
    def train_measure(self) -> Measure:
        return TRAIN_SCORE if self.is_policy else TRAIN_LOSS

    @property
    def held_out_measure(self) -> Measure:
        return HELD_OUT_SCORE if self.is_policy else HELD_OUT_LOSS

    @property
    def last_step(self) -> int:
        return int(max([0, *self.steps[-1:], *self.eval_steps[-1:]]))

    @cached_property
    def known_steps(self) -> Array:
        """The steps of the training rows whose value is finite."""
        return self.steps[np.isfinite(self.train)]

    @cached_property
    def smooth(self) -> Array:
        """Their values, as medians of the rows around each."""
        return rolling_median(self.train[np.isfinite(self.train)], self._width)

    @property
    def smoothing(self) -> str:
        """How `smooth` differs from the rows themselves, in words."""
        return f"medians of {min(self._width, len(self.known_steps))} rows"

    @property
    def first(self) -> float:
        """The first training value."""
        return float(self.train[np.isfinite(self.train)][0])

    @property
    def _width(self) -> int:
        return max(LEAST_WIDTH, int(WIDTH_SHARE * len(self.known_steps))) | 1

    @cached_property
    def train_noise(self) -> float:
        """The standard deviation of a training row about the smooth curve."""
        return noise(self.known_steps, self.train[np.isfinite(self.train)])

    @property
    def smooth_noise(self) -> float:
        """The standard deviation of a smoothed value: of a median of rows."""
        return self.train_noise * MEDIAN_OVER_MEAN / self._width**0.5

    @cached_property
    def eval_noise(self) -> float:
        """The standard deviation of an evaluation about a smooth curve, or by its own interval if that is wider.

        Of the later two thirds: the first evaluations bend most. 0 for fewer than LEAST_EVALUATIONS.
        """
        count = len(self.held_out)
        later = slice(count // 3 if count >= LEAST_EVALUATIONS else count, None)
        return max(noise(self.done(self.eval_steps)[later], self.held_out[later]), self.interval / NORMAL_95)

    def smooth_at(self, step: float) -> float:
        """The smoothed training value at a step; NaN without training rows."""
        return float(np.interp(step, self.known_steps, self.smooth)) if len(self.smooth) else math.nan

    def held_out_at(self, step: float) -> float:
        """The held-out value at a step, on the line between the evaluations before and after it."""
        return float(np.interp(step, self.eval_steps, self.held_out))

    def done(self, steps: Array) -> Array:
        """The share, from 0 to 1, of the run's training that was done by each step."""
        known = np.isfinite(self.learning_rates)
        if not known.any() or not np.nansum(self.learning_rates) > 0:
            return steps / max(1, self.last_step)
        at = np.concatenate([[0.0], self.steps[known]])
        rates = np.concatenate([self.learning_rates[known][:1], self.learning_rates[known]])
        summed = np.concatenate([[0.0], np.cumsum(np.diff(at) * (rates[1:] + rates[:-1]) / 2)])
        return np.interp(steps, at, summed / summed[-1])

    @cached_property
    def late(self) -> float:
        """The step at which the last quarter of the run's training began."""
        grid = np.linspace(0, self.last_step, 2001)
        return float(np.interp(1 - LATE_SHARE, self.done(grid), grid))


def course_of(record: RunRecord) -> Course:
    """The curves in a run's rows."""
    is_policy = record.recipe == "policy"
    is_muon = (record.config.get("optim") or {}).get("name") == "muon"
    train = (TRAIN_SCORE if is_policy else TRAIN_LOSS).of(record.train_rows)
    held_out = (HELD_OUT_SCORE if is_policy else HELD_OUT_LOSS).of(record.eval_rows)
    is_finite = np.isfinite(held_out)
    low, high = (Measure(f"eval_score_{end}", "").of(record.eval_rows) for end in ("low", "high"))
    halves = (high - low)[np.isfinite(high - low)] / 2
    epochs = Measure("epoch", "").of(record.train_rows)
    return Course(
        recipe=record.recipe,
        steps=STEP.of(record.train_rows),
        train=train,
        learning_rates=Measure("lr", "").of(record.train_rows),
        eval_steps=STEP.of(record.eval_rows)[is_finite],
        held_out=held_out[is_finite],
        interval=float(np.median(halves)) if is_policy and len(halves) else 0.0,
        epochs=float(epochs[-1]) if len(epochs) else math.nan,
        last_is_finite=not len(is_finite) or bool(is_finite[-1]),
        lr_keys="`optim.muon_lr` and `optim.lr`" if is_muon else "`optim.lr`",
    )
