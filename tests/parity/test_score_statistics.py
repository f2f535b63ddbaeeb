"""What evaluations find of scores equals what scikit-learn and SciPy find: ROC, calibration, correlation, intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve

from llmtrain.eval.pairs import calibration, calibration_error
from llmtrain.protocols import Array
from llmtrain.statistics.intervals import mean_interval, student_95, wilson_interval
from llmtrain.statistics.labelled import (
    ROC_POINTS,
    LabelledScores,
    area_under_curve,
    best_threshold,
    confusion,
    roc,
    score_histogram,
)
from llmtrain.statistics.weighted import correlation, mean, rank_correlation

CASES = ["plain", "ties", "weights", "unbalanced", "reversed", "one_each", "all_tied"]


def answers_of(case: str) -> LabelledScores:
    drawn = np.random.default_rng(CASES.index(case))
    good, bad = drawn.normal(0.7, 1, 90), drawn.normal(0, 1, 90)
    good_weights, bad_weights = np.ones(90), np.ones(90)
    if case == "ties":
        good, bad = good.round(), bad.round()
    elif case == "weights":
        good, bad = good.round(1), bad.round(1)
        good_weights, bad_weights = drawn.choice([1.0, 0.5, 1 / 3], 90), drawn.choice([1.0, 0.25], 90)
    elif case == "unbalanced":
        bad, bad_weights = bad[:7], bad_weights[:7]
    elif case == "reversed":
        good = good - 3
    elif case == "one_each":
        good, bad, good_weights, bad_weights = good[:1], bad[:1], good_weights[:1], bad_weights[:1]
    elif case == "all_tied":
        good, bad = np.zeros(90), np.zeros(90)
    return LabelledScores(good, bad, good_weights, bad_weights)


def columns(answers: LabelledScores) -> tuple[Array, Array, Array]:
    """Labels, scores and weights, as scikit-learn takes them."""
    labels = np.concatenate([np.ones(len(answers.good)), np.zeros(len(answers.bad))])
    scores = np.concatenate([answers.good, answers.bad])
    return labels, scores, np.concatenate([answers.good_weights, answers.bad_weights])


@pytest.mark.parametrize("case", CASES)
def test_auc_is_scikit_learns(case: str) -> None:
    answers = answers_of(case)
    labels, scores, weights = columns(answers)
    expected = metrics.roc_auc_score(labels, scores, sample_weight=weights)
    assert area_under_curve(answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_roc_is_scikit_learns_with_its_thresholds(case: str) -> None:
    answers = answers_of(case)
    labels, scores, weights = columns(answers)
    x, y, thresholds = metrics.roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
    expected = {t: (a, b) for t, a, b in zip(thresholds[1:], x[1:], y[1:], strict=True)}
    found = roc(answers)
    points = list(zip(found["false_positive_rates"], found["true_positive_rates"], strict=True))
    assert points[0] == (0, 0) and points[-1] == pytest.approx((1, 1))
    assert math.isnan(found["thresholds"][0])
    for threshold, point in zip(found["thresholds"][1:], points[1:], strict=True):
        assert point == pytest.approx(expected[threshold], abs=1e-12)
    # The corners that are left out are on the lines between the others: the areas under both curves are equal.
    area = metrics.auc(found["false_positive_rates"], found["true_positive_rates"])
    assert area == pytest.approx(metrics.auc(x, y), abs=1e-12)


def test_a_long_curve_keeps_exact_points_spread_along_it() -> None:
    drawn = np.random.default_rng(0)
    answers = LabelledScores(drawn.normal(1, 1, 20_000), drawn.normal(0, 1, 20_000), np.ones(20_000), np.ones(20_000))
    found = roc(answers)
    assert 150 < len(found["thresholds"]) <= ROC_POINTS
    points = np.array([found["false_positive_rates"], found["true_positive_rates"]])
    assert np.diff(points.sum(0)).max() < 3 * 2 / ROC_POINTS  # no gap of more than three steps
    assert points[:, 0].tolist() == [0, 0] and points[:, -1].tolist() == [1, 1]
    for threshold, x, y in list(zip(found["thresholds"], *points, strict=True))[1:]:
        assert (x, y) == ((answers.bad >= threshold).mean(), (answers.good >= threshold).mean())
    assert metrics.auc(*points) == pytest.approx(area_under_curve(answers), abs=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_the_confusion_matrix_is_scikit_learns(case: str) -> None:
    answers = answers_of(case)
    threshold = best_threshold(answers)
    labels, scores, weights = columns(answers)
    expected = metrics.confusion_matrix(labels, scores >= threshold, labels=[0, 1], sample_weight=weights)
    found = confusion(answers, threshold)
    names = ("true_negatives", "false_positives", "false_negatives", "true_positives")
    assert [found[name] for name in names] == pytest.approx(expected.ravel().tolist(), abs=1e-12)
    assert found["threshold"] == threshold


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("unbalanced", "weights")])
def test_no_threshold_calls_more_answers_right_than_the_best(case: str) -> None:
    answers = answers_of(case)
    labels, scores, weights = columns(answers)
    right = {
        threshold: metrics.accuracy_score(labels, scores >= threshold, sample_weight=weights) for threshold in scores
    }
    assert right[best_threshold(answers)] == max(right.values())


@pytest.mark.parametrize("labels", ["good", "bad", "none"])
def test_answers_of_one_label_have_no_roc(labels: str) -> None:
    some, none = np.array([1.0, 2.0]), np.array([])
    good, bad = (some if labels == name else none for name in ("good", "bad"))
    answers = LabelledScores(good, bad, np.ones(len(good)), np.ones(len(bad)))
    assert roc(answers) == {"thresholds": [], "false_positive_rates": [], "true_positive_rates": []}
    assert math.isnan(area_under_curve(answers)) and math.isnan(best_threshold(answers))
    found = confusion(answers, best_threshold(answers))
    assert math.isnan(found.pop("threshold")) and set(found.values()) == {0.0}


def test_the_histogram_is_numpys_and_holds_every_answer() -> None:
    answers = answers_of("weights")
    found = score_histogram(answers)
    for name, scores, weights in (
        ("good", answers.good, answers.good_weights),
        ("bad", answers.bad, answers.bad_weights),
    ):
        expected, _ = np.histogram(scores, found["edges"], weights=weights)
        assert found[name] == pytest.approx(expected.tolist())
        assert sum(found[name]) == pytest.approx(weights.sum())


def test_calibration_is_scikit_learns() -> None:
    drawn = np.random.default_rng(3)
    margins = drawn.normal(0.8, 1.5, 400)
    confidence, right = 1 / (1 + np.exp(-np.abs(margins))), (margins > 0).astype(float)
    accuracies, confidences = calibration_curve(right, confidence, n_bins=20)  # of 0 to 1; ours start at 1/2
    found = [part for part in calibration(margins, np.ones(400)) if part["comparisons"]]
    assert [part["accuracy"] for part in found] == pytest.approx(accuracies.tolist(), abs=1e-12)
    assert [part["confidence"] for part in found] == pytest.approx(confidences.tolist(), abs=1e-12)
    counts = np.histogram(confidence, np.linspace(0, 1, 21))[0][10:]
    assert [part["comparisons"] for part in calibration(margins, np.ones(400))] == counts.tolist()
    expected = np.sum(counts[counts > 0] * np.abs(accuracies - confidences)) / 400
    assert calibration_error(margins, np.ones(400)) == pytest.approx(expected, abs=1e-12)


def test_a_weight_counts_as_copies() -> None:
    drawn = np.random.default_rng(4)
    first = drawn.normal(size=40).round(1)
    second = (first + drawn.normal(size=40)).round(1)
    copies = drawn.integers(1, 5, 40)
    weights = copies.astype(float)
    many_first, many_second = np.repeat(first, copies), np.repeat(second, copies)
    assert mean(first, weights) == pytest.approx(many_first.mean())
    assert correlation(first, second, weights) == pytest.approx(stats.pearsonr(many_first, many_second).statistic)
    spearman = stats.spearmanr(many_first, many_second).statistic
    assert rank_correlation(first, second, weights) == pytest.approx(spearman)
    for error in (calibration_error(second, weights), calibration_error(many_second, np.ones(len(many_second)))):
        assert error == pytest.approx(calibration_error(second, weights / 3), abs=1e-12)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 20), (20, 20), (6, 10), (511, 900)])
def test_the_interval_of_a_proportion_is_scipys(right: int, count: int) -> None:
    expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("count", [2, 5, 300])
def test_the_interval_of_a_mean_is_scipys(count: int) -> None:
    numbers = np.random.default_rng(count).normal(3, 2, count)
    expected = stats.t.interval(0.95, count - 1, loc=numbers.mean(), scale=stats.sem(numbers))
    found = mean_interval(float(numbers.mean()), float((numbers**2).mean()), count)
    assert found == pytest.approx(expected, rel=1e-6)


def test_students_quantile_is_scipys() -> None:
    for freedom in (*range(1, 40), 300, 10**6):
        assert student_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=5e-6)


def test_one_number_has_no_interval() -> None:
    assert all(math.isnan(end) for end in mean_interval(3.0, 9.0, 1))
