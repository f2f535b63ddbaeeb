"""Confidence intervals."""

from __future__ import annotations

import math

NORMAL_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(proportion: float, count: float) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion over `count` independent trials (Wilson 1927)."""
    if not count:
        return math.nan, math.nan
    z2 = NORMAL_95**2 / count
    centre = (proportion + z2 / 2) / (1 + z2)
    half = NORMAL_95 / (1 + z2) * math.sqrt(proportion * (1 - proportion) / count + z2 / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(mean: float, mean_square: float, count: float) -> tuple[float, float]:
    """The 95 % confidence interval of a mean of `count` independent numbers, by the normal approximation."""
    half = NORMAL_95 * math.sqrt(max(0.0, mean_square - mean**2) / count)
    return mean - half, mean + half
