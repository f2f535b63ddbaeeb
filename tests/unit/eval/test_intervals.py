"""Confidence intervals against their formulas, and at the ends of the scale."""

from __future__ import annotations

import math

import pytest

from llmtrain.eval.intervals import mean_interval, wilson_interval


def test_the_interval_is_wilsons() -> None:
    # z = 1.96: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), p = 0.6, n = 10
    z, p, n = 1.959963984540054, 0.6, 10
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    assert wilson_interval(p, n) == pytest.approx(((centre - half) / scale, (centre + half) / scale))
    assert wilson_interval(0.6, 10) == pytest.approx((0.3127, 0.8318), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_interval_of_an_extreme_share_stays_within_bounds(share: float) -> None:
    low, high = wilson_interval(share, 20)
    assert 0 <= low < high <= 1 and low <= share <= high


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    numbers = [1.0, 2.0, 2.0, 5.0]  # mean 2.5, variance (2.25 + 0.25 + 0.25 + 6.25) / 4 = 2.25
    low, high = mean_interval(2.5, sum(number**2 for number in numbers) / 4, 4)
    assert (low, high) == pytest.approx((2.5 - 1.96 * 1.5 / 2, 2.5 + 1.96 * 1.5 / 2), abs=1e-4)
