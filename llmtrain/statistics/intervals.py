"""Confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    """The 95 % confidence interval of a mean of `count` independent numbers, by the normal approximation.

    The variance is that of a sample (divided by count - 1). NaN for one number, which has no spread.
    """
    if count <= 1:
        return math.nan, math.nan
    half = NORMAL_95 * math.sqrt(max(0.0, mean_square - mean**2) / (count - 1))
    return mean - half, mean + half


def ratio_interval(sums: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of a mean per token, from sums over clusters of tokens that are not independent.

    `sums` are over clusters with x in total (a loss) and n tokens: of 1, x, n, x^2, x n, n^2. The estimator is that of
    `clustered_mean`; sums can be added over processes. NaN for fewer than two clusters.
    """
    count, total, tokens, squares, products, token_squares = sums
    if count < 2:
        return math.nan, math.nan
    mean = total / tokens
    residuals = squares - 2 * mean * products + mean**2 * token_squares  # of x - mean n, squared
    half = NORMAL_95 * math.sqrt(count / (count - 1) * max(0.0, residuals)) / tokens
    return mean - half, mean + half


def clustered_mean(
    values: Sequence[float], weights: Sequence[float], clusters: Sequence[str]
) -> tuple[float, float, float]:
    """A weighted mean and its 95 % confidence interval, where values of one cluster are not independent.

    The ratio estimator with the variance between clusters (Cochran 1977, chapters 6 and 9A), by the normal
    approximation; without an interval (NaN) of fewer than two clusters.
    """
    total = math.fsum(weights)
    if not total:
        return math.nan, math.nan, math.nan
    mean = math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    residuals: dict[str, float] = {}
    for value, weight, cluster in zip(values, weights, clusters, strict=True):
        residuals[cluster] = residuals.get(cluster, 0.0) + weight * (value - mean)
    count = len(residuals)
    if count < 2:
        return mean, math.nan, math.nan
    variance = count / (count - 1) * math.fsum(residual**2 for residual in residuals.values()) / total**2
    half = NORMAL_95 * math.sqrt(variance)
    return mean, mean - half, mean + half


def clustered_proportion(
    values: Sequence[float], weights: Sequence[float], clusters: Sequence[str]
) -> tuple[float, float, float]:
    """`clustered_mean` of numbers from 0 to 1, with Wilson's interval over as many trials as the variance is worth.

    So the interval stays within 0 and 1, and has a width where all values are equal. Of independent values the trials
    are their count minus 1.
    """
    mean, low, high = clustered_mean(values, weights, clusters)
    if math.isnan(low):
        return mean, low, high
    variance = ((high - low) / 2 / NORMAL_95) ** 2
    spread = mean * (1 - mean)
    trials = spread / variance if variance > 0 and spread > 0 else len(set(clusters))
    return mean, *wilson_interval(mean, trials)
