"""Paired comparison: what it claims of equal models, what it finds of different ones, against other computations."""

from __future__ import annotations

import math
from statistics import stdev

import numpy as np
import pytest
from scipy.stats import binom, norm, ttest_rel

from llmtrain.statistics.paired import (
    Sums,
    bootstrap_interval,
    equality,
    holm,
    items_needed,
    mcnemar,
    paired,
    sign_flip,
    smallest_found,
    verdict,
)
from llmtrain.system.typing import Array

TRIALS = 1000


def answers(rng: np.random.Generator, items: int, wins: float, losses: float) -> tuple[Array, Array]:
    """Right and wrong answers of two models: the second alone is right with the chance `wins`."""
    drawn = rng.random(items)
    both = rng.random(items) < 0.5
    second = np.where(drawn < wins, True, np.where(drawn < wins + losses, False, both))
    first = np.where(drawn < wins, False, np.where(drawn < wins + losses, True, both))
    return first.astype(float), second.astype(float)


@pytest.mark.parametrize("items", [20, 100, 400])
def test_of_equal_models_a_difference_of_shares_is_claimed_in_at_most_5_of_100_trials(items: int) -> None:
    rng = np.random.default_rng(items)
    claimed = sum(mcnemar(*answers(rng, items, 0.15, 0.15)) < 0.05 for _ in range(TRIALS))
    assert claimed <= 0.05 * TRIALS


@pytest.mark.parametrize("items", [12, 60])
def test_of_equal_models_a_difference_of_means_is_claimed_in_at_most_5_of_100_trials_but_for_chance(items: int) -> None:
    rng = np.random.default_rng(items)
    # Losses with a long tail, of which a t-test would be wrong.
    trials = [rng.laplace(size=items) * rng.exponential(size=items) for _ in range(TRIALS)]
    claimed = sum(sign_flip(differences, seed=0, resamples=499) < 0.05 for differences in trials)
    assert claimed <= binom.ppf(0.999, TRIALS, 0.05)


@pytest.mark.parametrize(("wins", "losses"), [(0.15, 0.05), (0.10, 0.04), (0.3, 0.2)])
def test_a_planted_difference_of_shares_is_found_with_the_stated_power(wins: float, losses: float) -> None:
    difference = wins - losses
    spread = math.sqrt(wins + losses - difference**2)
    items = items_needed(difference, spread, is_share=True)
    assert items is not None
    rng = np.random.default_rng(1)
    found = sum(mcnemar(*answers(rng, items, wins, losses)) < 0.05 for _ in range(TRIALS)) / TRIALS
    assert 0.77 <= found <= 0.86


@pytest.mark.parametrize("difference", [0.25, 0.5])
def test_a_planted_difference_of_means_is_found_with_the_stated_power(difference: float) -> None:
    items = items_needed(difference, 1.0, is_share=False)
    assert items is not None
    rng = np.random.default_rng(2)
    trials = [rng.normal(difference, 1, items) for _ in range(TRIALS // 2)]
    found = sum(sign_flip(trial, resamples=499) < 0.05 for trial in trials) / len(trials)
    assert 0.74 <= found <= 0.86
    assert smallest_found(1.0, items) == pytest.approx(difference, rel=0.03)


def test_mcnemar_is_the_binomial_test_of_the_items_that_one_model_alone_has_right() -> None:
    first = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 1.0])
    second = np.array([1, 1, 0, 1, 1, 1, 1, 1, 1, 1.0])  # 6 won, 1 lost
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar(first, first) == 1.0


def test_the_sign_flip_test_of_few_items_counts_all_signs() -> None:
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)
    assert sign_flip(np.zeros(5)) == 1.0


def test_the_interval_is_about_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(2, 300))
    low, high = bootstrap_interval(Sums.of(first), Sums.of(second))
    exact = ttest_rel(second, first).confidence_interval(0.95)
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.02)


def test_a_weighted_difference_is_that_of_the_ratios() -> None:
    bits_a, bits_b, sizes = [10.0, 30.0, 5.0], [8.0, 33.0, 4.0], [10.0, 40.0, 5.0]
    found = paired(Sums.of(bits_a, sizes), Sums.of(bits_b, sizes), is_share=False)
    assert found.difference == pytest.approx(45 / 55 - 45 / 55)
    assert found.num_needed is None or found.num_needed > 10**6
    found = paired(Sums.of(bits_a, sizes), Sums.of([8.0, 31.0, 4.0], sizes), is_share=False)
    assert found.difference == pytest.approx((43 - 45) / 55)
    residuals = [(d + 2 / 55 * s) * 3 / 55 for d, s in zip([-2, 1, -1], sizes, strict=True)]
    assert found.smallest == pytest.approx((norm.ppf(0.975) + norm.ppf(0.8)) * stdev(residuals) / math.sqrt(3))


def test_equal_differences_have_no_spread_and_one_item_no_interval() -> None:
    assert bootstrap_interval(Sums.of(np.zeros(4)), Sums.of(np.ones(4))) == (1.0, 1.0)
    assert all(map(math.isnan, bootstrap_interval(Sums.of([0]), Sums.of([1]))))


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_verdict_knows_which_way_is_better() -> None:
    assert verdict(0.1, 0.01, higher_is_better=True) == "better"
    assert verdict(0.1, 0.01, higher_is_better=False) == "worse"
    assert verdict(-0.1, 0.01, higher_is_better=False) == "better"
    assert verdict(0.1, 0.05, higher_is_better=True) == "not distinguishable"


def test_of_a_measure_without_a_good_direction_the_verdict_says_which_way() -> None:
    assert verdict(0.1, 0.01, higher_is_better=None) == "higher"
    assert verdict(-0.1, 0.01, higher_is_better=None) == "lower"
    assert verdict(0.1, 0.05, higher_is_better=None) == "not distinguishable"


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_of_equal_models_with_clusters_a_difference_is_claimed_in_at_most_5_of_100_trials_but_for_chance(
    shared: float,
) -> None:
    rng = np.random.default_rng(4)
    trials, clusters = 300, [str(number // 5) for number in range(100)]
    claimed = 0
    for _ in range(trials):
        common = np.repeat(rng.normal(size=(2, 20)), 5, axis=1) * shared
        first, second = rng.normal(size=(2, 100)) + common
        sums = (Sums.of(each).by_cluster(clusters) for each in (first, second))
        claimed += equality(*sums, exact=False, resamples=499) < 0.05
    assert claimed <= binom.ppf(0.999, trials, 0.05)


def test_without_clusters_items_of_one_template_would_claim_a_difference() -> None:
    first = np.zeros(100)
    second = np.repeat([1.0] * 9 + [-1.0] * 11, 5) + 0.4
    clusters = [str(number // 5) for number in range(100)]
    alone = paired(Sums.of(first), Sums.of(second), is_share=False)
    together = paired(Sums.of(first), Sums.of(second), is_share=False, clusters=clusters)
    assert alone.p_value < 0.05 < together.p_value
    assert together.high - together.low == pytest.approx(math.sqrt(5) * (alone.high - alone.low), rel=0.1)


def test_ratios_with_weights_of_their_own_are_compared_as_ratios() -> None:
    rng = np.random.default_rng(5)
    named, also = (rng.random((2, 300)) < [[0.9], [0.3]]).astype(float)
    same = paired(Sums.of(named * 0.5, named), Sums.of(also * 0.5, also), is_share=False)
    assert same.difference == 0 and same.p_value == 1.0  # both 1/2, of other numbers of answers
    signs = rng.choice([-1.0, 1.0], 300, p=[0.2, 0.8])
    other = paired(Sums.of(named * rng.choice([-1.0, 1.0], 300), named), Sums.of(also * signs, also), is_share=False)
    assert other.difference == pytest.approx(0.6, abs=0.2) and other.p_value < 0.01


def test_nothing_to_divide_by_is_no_difference() -> None:
    empty = Sums.of(np.zeros(5), np.zeros(5))
    found = paired(empty, Sums.of(np.ones(5), np.ones(5)), is_share=False)
    assert (found.difference, found.low, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("is_share", [True, False])
def test_of_models_equally_far_from_an_ideal_on_either_side_neither_is_claimed_to_be_nearer(is_share: bool) -> None:
    rng = np.random.default_rng(6)
    trials, claimed, plain = 200, 0, 0
    for _ in range(trials):
        first, second = (rng.random((2, 150)) < [[0.65], [0.35]]).astype(float)
        sums = Sums.of(first), Sums.of(second)
        claimed += equality(*sums, exact=is_share, ideal=0.5, resamples=499) < 0.05
        plain += equality(*sums, exact=is_share, resamples=499) < 0.05
    assert claimed <= binom.ppf(0.999, trials, 0.05) and plain > 0.95 * trials


def test_a_model_nearer_to_the_ideal_is_found_on_either_side() -> None:
    rng = np.random.default_rng(7)
    for nearer in (0.52, 0.48):
        first, second = (rng.random((2, 600)) < [[0.8], [nearer]]).astype(float)
        assert paired(Sums.of(first), Sums.of(second), is_share=True, ideal=0.5).p_value < 0.01
