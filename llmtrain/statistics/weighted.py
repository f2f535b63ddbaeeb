"""Statistics of numbers that count with weights; NaN over no numbers."""

from __future__ import annotations

import math

import numpy as np

from llmtrain.system.typing import Array


def mean(values: Array, weights: Array) -> float:
    """The weighted mean of values (n,)."""
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total else math.nan


def correlation(first: Array, second: Array, weights: Array) -> float:
    """Pearson's correlation coefficient; NaN if one of the two does not vary."""
    if not len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    first, second = (values - mean(values, weights) for values in (first, second))
    spread = math.sqrt(mean(first**2, weights) * mean(second**2, weights))
    return mean(first * second, weights) / spread if spread else math.nan


def rank_correlation(first: Array, second: Array, weights: Array) -> float:
    """Spearman's rank correlation coefficient: a value of weight 2 counts as two equal ones."""
    return correlation(middle_ranks(first, weights), middle_ranks(second, weights), weights)


def middle_ranks(values: Array, weights: Array) -> Array:
    """The weight below each value plus half the weight of those equal to it: equal values share a rank."""
    order = np.argsort(values, kind="stable")
    below = np.concatenate([[0.0], np.cumsum(weights[order])])
    first, last = (below[np.searchsorted(values[order], values, side=side)] for side in ("left", "right"))
    return (first + last) / 2
