"""A noisy column of training rows as means over equal parts of the run, with their standard errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmtrain.runs.report.curves import column
from llmtrain.runs.rows import Rows

PARTS = 10
ROWS_PER_PART = 3
SURE = 3.0
"""A difference of so many standard errors is more than noise."""


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a run."""

    last_step: int
    mean: float
    error: float  # standard error of the mean


def parts(rows: Rows, name: str) -> Sequence[Part]:
    """A field in at most PARTS parts of at least ROWS_PER_PART rows; [] if there are too few for two.

    Rows that repeat the value before them count once: all steps of a rollout log its metrics.
    """
    curve = column(rows, name)
    fresh = np.isfinite(curve.y) & np.append(True, np.diff(curve.y) != 0)[: len(curve.y)]
    steps, values = curve.x[fresh], curve.y[fresh]
    count = min(PARTS, len(values) // ROWS_PER_PART)
    if count < 2:
        return []
    edges = np.linspace(0, len(values), count + 1).astype(int)
    found = []
    for start, end in itertools.pairwise(edges.tolist()):
        inside = values[start:end]
        error = float(inside.std(ddof=1)) / math.sqrt(len(inside))
        found.append(Part(int(steps[end - 1]), float(inside.mean()), error))
    return found


def clear_change(before: Part, after: Part) -> float:
    """The change of the mean; 0 if it may be noise."""
    change, error = after.mean - before.mean, math.hypot(before.error, after.error)
    return change if abs(change) > SURE * error else 0.0
