"""The statistics of curves against SciPy, and on curves made to measure."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import scipy.stats

from llmtrain.statistics.trend import noise, rise_probability, rolling_median, spikes


def drawn(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


@pytest.mark.parametrize("width", [1, 3, 7, 41])
def test_the_rolling_median_is_scipys_within_and_of_what_is_there_at_the_ends(width: int) -> None:
    values, half = drawn(0, 100), width // 2
    found = rolling_median(values, width)
    assert np.array_equal(found[half : 100 - half], scipy.signal.medfilt(values, width)[half : 100 - half])
    assert found[0] == np.median(values[: half + 1]) and found[-1] == np.median(values[99 - half :])


def test_the_rolling_median_of_little_is_defined() -> None:
    assert rolling_median(np.array([]), 5).tolist() == []
    assert rolling_median(np.array([1.0]), 5).tolist() == [1.0]
    assert rolling_median(np.array([1.0, 3.0]), 5).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("count", [3, 10, 100])
def test_the_probability_of_a_rise_is_that_of_scipys_kendall(count: int, rounded: bool) -> None:
    for seed in range(10):
        values = drawn(seed, count) + np.arange(count) * 0.05
        values = values.round() if rounded else values
        oracle = scipy.stats.kendalltau(np.arange(count), values, method="asymptotic", alternative="greater").pvalue
        expected = 0.5 if np.isnan(oracle) else oracle
        assert rise_probability(values) == pytest.approx(expected, rel=1e-9)


def test_the_noise_of_a_curve_is_that_which_was_added() -> None:
    positions = np.sort(np.random.default_rng(2).uniform(size=400))
    curve = np.exp(-3 * positions)
    assert noise(positions, curve) < 1e-3
    assert noise(positions, curve + 0.2 * drawn(3, 400)) == pytest.approx(0.2, rel=0.15)


def test_spikes_are_found_where_they_are_and_nowhere_else() -> None:
    values = np.exp(-np.arange(500) / 50) * 5 + 0.05 * drawn(4, 500)
    assert spikes(values, 41, 8.0, 0.1) == []
    values[[50, 200, 201, 202, 400]] += 1.0
    assert spikes(values, 41, 8.0, 0.1) == [50, 200, 400]
    assert spikes(values, 41, 8.0, 2.0) == []


def test_a_step_up_a_wild_start_and_rows_that_are_not_finite_are_no_spikes() -> None:
    values = 0.05 * drawn(5, 300)
    values[150:] += 2.0
    values[:2] = 9.0
    values[[40, 41, 220]] = np.nan
    assert spikes(values, 41, 8.0, 0.1) == []
    assert spikes(values[:5], 41, 8.0, 0.1) == [] and spikes(values[:0], 41, 8.0, 0.1) == []


@pytest.mark.parametrize("width", [41, 5001])
def test_the_rolling_median_of_a_long_curve_is_near_the_exact_one_with_its_steps_where_they_are(width: int) -> None:
    values = np.where(np.arange(300_000) < 150_000, 0.0, 5.0) + 0.1 * drawn(6, 300_000)
    found = rolling_median(values, width)
    places = np.array([0, 1, 777, 149_000, 150_100 + width, 299_999])
    exact = [np.median(values[max(0, at - width // 2) : at + width // 2 + 1]) for at in places]
    assert np.abs(found[places] - exact).max() < 0.1


def test_spikes_of_a_long_curve_are_found() -> None:
    values = 0.05 * drawn(7, 400_000) + 2.0
    values[[1_003, 200_001, 200_002, 399_000]] += 2.0
    assert spikes(values, 41, 8.0, 0.1) == [1_003, 200_001, 399_000]
