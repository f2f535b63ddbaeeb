"""Confidence intervals of what is measured on a sample."""

from __future__ import annotations

import math

NORMAL_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """The 95 % confidence interval of a share of `count` independent trials (Wilson 1927)."""
    if not count:
        return math.nan, math.nan
    z2 = NORMAL_95**2 / count
    centre = (share + z2 / 2) / (1 + z2)
    half = NORMAL_95 / (1 + z2) * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(mean: float, mean_square: float, count: float) -> tuple[float, float]:
    """The 95 % confidence interval of a mean of `count` independent numbers, many enough to be taken as normal."""
    half = NORMAL_95 * math.sqrt(max(0.0, mean_square - mean**2) / count)
    return mean - half, mean + half
