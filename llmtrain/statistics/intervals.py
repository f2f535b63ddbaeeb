"""Confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

NORMAL_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile
STUDENT_95 = (12.7062047, 4.3026527, 3.1824463, 2.7764451, 2.5705818, 2.4469119, 2.3646243, 2.3060041, 2.2621572)
"""Student's, of 1 to 9 degrees of freedom."""


def student_95(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, of 1 degree of freedom at least, to 1e-5.

    How much wider an interval is whose spread is itself estimated: 12.7 of two numbers, 2.26 of ten, 1.98 of a hundred.
    From ten on by the expansion in 1 / freedom (Abramowitz and Stegun 1964, 26.7.5).
    """
    if freedom < len(STUDENT_95) + 1:
        return STUDENT_95[int(freedom) - 1]
    x = NORMAL_95
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))


def wilson_interval(proportion: float, count: float, quantile: float = NORMAL_95) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion over `count` independent trials (Wilson 1927)."""
    if not count:
        return math.nan, math.nan
    z2 = quantile**2 / count
    centre = (proportion + z2 / 2) / (1 + z2)
    half = quantile / (1 + z2) * math.sqrt(proportion * (1 - proportion) / count + z2 / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(mean: float, mean_square: float, count: float) -> tuple[float, float]:
    """The 95 % confidence interval of a mean of `count` independent numbers, by Student's t.

    The variance is that of a sample (divided by count - 1). NaN for fewer than two numbers, which have no spread.
    """
    if count < 2:
        return math.nan, math.nan
    half = student_95(count - 1) * math.sqrt(max(0.0, mean_square - mean**2) / (count - 1))
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
    half = student_95(count - 1) * math.sqrt(count / (count - 1) * max(0.0, residuals)) / tokens
    return mean - half, mean + half


def clustered_mean(
    values: Sequence[float], weights: Sequence[float], clusters: Sequence[str]
) -> tuple[float, float, float]:
    """A weighted mean and its 95 % confidence interval, where values of one cluster are not independent.

    The ratio estimator with the variance between clusters (Cochran 1977, chapters 6 and 9A), by Student's t of their
    number minus 1; without an interval (NaN) of fewer than two clusters.
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
    half = student_95(count - 1) * math.sqrt(variance)
    return mean, mean - half, mean + half


def clustered_proportion(
    values: Sequence[float], weights: Sequence[float], clusters: Sequence[str]
) -> tuple[float, float, float]:
    """`clustered_mean` of numbers from 0 to 1, with Wilson's interval over as many trials as the variance is worth.

    So the interval stays within 0 and 1, and has a width where all values are equal. Of independent values the trials
    are their count minus 1. The quantile is Student's, as the variance is estimated; where no cluster differs, the
    trials are the clusters and nothing is.
    """
    mean, low, high = clustered_mean(values, weights, clusters)
    if math.isnan(low):
        return mean, low, high
    num_clusters = len(set(clusters))
    quantile = student_95(num_clusters - 1)
    variance = ((high - low) / 2 / quantile) ** 2
    spread = mean * (1 - mean)
    if variance > 0 and spread > 0:
        return mean, *wilson_interval(mean, spread / variance, quantile)
    return mean, *wilson_interval(mean, num_clusters)
