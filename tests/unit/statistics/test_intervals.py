"""Confidence intervals against their formulas, and at the ends of the scale."""

from __future__ import annotations

import math
import random

import pytest

from llmtrain.statistics.intervals import (
    clustered_mean,
    clustered_proportion,
    mean_interval,
    ratio_interval,
    student_95,
    wilson_interval,
)


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


def test_the_interval_of_a_mean_is_students() -> None:
    numbers = [1.0, 2.0, 2.0, 5.0]  # mean 2.5, variance (2.25 + 0.25 + 0.25 + 6.25) / 3 = 3
    low, high = mean_interval(2.5, sum(number**2 for number in numbers) / 4, 4)
    assert (low, high) == pytest.approx((2.5 - 3.1824 * 3**0.5 / 2, 2.5 + 3.1824 * 3**0.5 / 2), abs=1e-4)


def test_a_mean_over_clusters_of_one_has_the_interval_of_a_mean() -> None:
    values = [0.3, 1.2, -0.4, 2.5, 0.9]
    mean, low, high = clustered_mean(values, [1.0] * 5, list("abcde"))
    square = sum(value**2 for value in values) / 5
    assert (mean, low, high) == pytest.approx((sum(values) / 5, *mean_interval(mean, square, 5)))


def test_equal_values_of_a_cluster_count_once() -> None:
    values, clusters = [0.3, 1.2, -0.4, 2.5], list("abcd")
    once = clustered_mean(values, [1.0] * 4, clusters)
    assert clustered_mean(values * 3, [1.0] * 12, clusters * 3) == pytest.approx(once)
    assert clustered_mean(values, [3.0] * 4, clusters) == pytest.approx(once)


def test_a_cluster_that_is_far_off_widens_the_interval() -> None:
    values, weights = [0.0, 0.0, 1.0, 1.0], [1.0] * 4
    _, low, high = clustered_mean(values, weights, list("abcd"))
    _, low_of_two, high_of_two = clustered_mean(values, weights, list("aabb"))
    assert high_of_two - low_of_two > high - low
    assert math.isnan(clustered_mean(values, weights, list("aaaa"))[1])


@pytest.mark.parametrize("num_clusters", [4, 8, 60])
def test_nine_in_ten_and_more_of_the_intervals_hold_the_mean_of_clusters(num_clusters: int) -> None:
    drawn = random.Random(0)
    held = 0
    for _ in range(400):
        values, clusters = [], []
        for cluster in range(num_clusters):
            own = drawn.gauss(1.0, 1.0)
            for _ in range(drawn.randint(1, 4)):
                values.append(drawn.gauss(own, 0.2))
                clusters.append(str(cluster))
        _, low, high = clustered_mean(values, [1.0] * len(values), clusters)
        held += low <= 1.0 <= high
    assert 0.92 <= held / 400 <= 0.98


def test_a_proportion_stays_within_its_bounds() -> None:
    values = [1.0] * 59 + [0.0]
    mean, low, high = clustered_proportion(values, [1.0] * 60, [str(i) for i in range(60)])
    assert (low, high) == pytest.approx(wilson_interval(mean, 59, student_95(59)))
    mean, low, high = clustered_proportion([1.0] * 20, [1.0] * 20, [str(i) for i in range(20)])
    assert (mean, high) == (1.0, 1.0) and low == pytest.approx(wilson_interval(1.0, 20)[0])


def test_the_interval_from_sums_is_that_of_the_clusters_themselves() -> None:
    losses, tokens = [3.0, 10.5, 2.0, 7.25], [2.0, 5.0, 1.0, 3.0]
    columns = [(1.0, x, n, x * x, x * n, n * n) for x, n in zip(losses, tokens, strict=True)]
    means = [x / n for x, n in zip(losses, tokens, strict=True)]
    _, low, high = clustered_mean(means, tokens, ["a", "b", "c", "d"])
    assert ratio_interval([sum(column) for column in zip(*columns, strict=True)]) == pytest.approx((low, high))


def test_one_cluster_has_no_interval() -> None:
    assert all(math.isnan(end) for end in ratio_interval([1, 3.0, 2, 9.0, 6.0, 4]))
