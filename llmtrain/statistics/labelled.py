"""How well a score separates answers that are labelled good from those labelled bad: ROC, AUC, confusion matrix.

The chosen and rejected answers of pairs are such answers, and so are KTO's desirable and undesirable ones. Every answer
counts with its weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmtrain.statistics.weighted import correlation, rank_correlation
from llmtrain.system.typing import Array

ROC_POINTS = 200  # at most, in a report
HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class LabelledScores:
    """Scores of good and bad answers, all finite; every array (answers,) float64."""

    good: Array  # scores
    bad: Array
    good_weights: Array
    bad_weights: Array

    @property
    def has_both(self) -> bool:
        """Whether there are answers of both labels: without, there is no ROC."""
        return bool(self.good_weights.sum() and self.bad_weights.sum())


def area_under_curve(answers: LabelledScores) -> float:
    """The fraction of (good, bad) answers in which the good one scores higher; a tie counts half. NaN without both."""
    if not answers.has_both:
        return math.nan
    order = np.argsort(answers.bad, kind="stable")
    below = np.concatenate([[0.0], np.cumsum(answers.bad_weights[order])])
    lower, upper = (below[np.searchsorted(answers.bad[order], answers.good, side=side)] for side in ("left", "right"))
    wins = np.sum(answers.good_weights * (lower + upper)) / 2
    return float(wins / (answers.good_weights.sum() * answers.bad_weights.sum()))


def roc(answers: LabelledScores, max_points: int = ROC_POINTS) -> dict[str, list[float]]:
    """The curve's corners, each exact: the shares of bad and of good answers that score at least its threshold.

    From (0, 0), whose threshold is no number, to (1, 1). If there are more than `max_points` corners, those are kept
    that are spread evenly along the curve. Empty lists if all answers have one label.
    """
    if not answers.has_both:
        return {"thresholds": [], "false_positive_rates": [], "true_positive_rates": []}
    thresholds, false_positives, true_positives = _passing(answers)
    x, y = (np.concatenate([[0.0], counts]) for counts in (false_positives, true_positives))
    corners = _corners(x, y)
    x, y = x / x[-1], y / y[-1]
    if len(corners) > max_points:
        along = (x + y)[corners]
        nearest = np.searchsorted(along, np.linspace(0.0, along[-1], max_points))
        corners = corners[np.unique(np.minimum(nearest, len(corners) - 1))]
    return {
        "thresholds": np.concatenate([[math.nan], thresholds])[corners].tolist(),
        "false_positive_rates": x[corners].tolist(),
        "true_positive_rates": y[corners].tolist(),
    }


def best_threshold(answers: LabelledScores) -> float:
    """The score from which on to call answers good, so that most are called right; NaN if all have one label.

    Of equally good thresholds it is the highest. As it is chosen on the answers that it is then measured on, it shows
    the most that any threshold reaches on them.
    """
    if not answers.has_both:
        return math.nan
    thresholds, false_positives, true_positives = _passing(answers)
    return float(thresholds[np.argmax(true_positives - false_positives)])


def confusion(answers: LabelledScores, threshold: float) -> dict[str, float]:
    """Weights of answers by label, and by whether they score at least the threshold; NaN as threshold: all zero."""
    good, bad = answers.good >= threshold, answers.bad >= threshold
    known = not math.isnan(threshold)
    return {
        "threshold": threshold,
        "true_positives": float(answers.good_weights[good].sum()),
        "false_negatives": float(answers.good_weights[~good].sum()) if known else 0.0,
        "false_positives": float(answers.bad_weights[bad].sum()),
        "true_negatives": float(answers.bad_weights[~bad].sum()) if known else 0.0,
    }


def score_histogram(answers: LabelledScores) -> dict[str, list[float]]:
    """Weights of good and of bad answers in bins of equal width between the extreme scores; the edges of the bins."""
    scores = np.concatenate([answers.good, answers.bad])
    if not len(scores):
        return {"edges": [], "good": [], "bad": []}
    edges = np.histogram_bin_edges(scores, HISTOGRAM_BINS)
    good, _ = np.histogram(answers.good, edges, weights=answers.good_weights)
    bad, _ = np.histogram(answers.bad, edges, weights=answers.bad_weights)
    return {"edges": edges.tolist(), "good": good.tolist(), "bad": bad.tolist()}


def length_correlation(scores: Array, lengths: Array, weights: Array) -> dict[str, float]:
    """Pearson's and Spearman's correlation of the scores of answers with their lengths."""
    return {
        "pearson": correlation(scores, lengths, weights),
        "spearman": rank_correlation(scores, lengths, weights),
    }


def spread_out(columns: dict[str, Array], count: int) -> dict[str, list[Any]]:
    """At most `count` rows of a table, evenly spaced when sorted by its columns, so the same in any order."""
    order = np.lexsort(tuple(reversed(list(columns.values()))))
    if len(order) > count:
        order = order[np.linspace(0, len(order) - 1, count).round().astype(int)]
    return {name: [float(f"{value:.6g}") for value in column[order]] for name, column in columns.items()}


def _passing(answers: LabelledScores) -> tuple[Array, Array, Array]:
    """Every score as a threshold, highest first, and the weights of bad and of good answers that score at least it."""
    scores = np.concatenate([answers.good, answers.bad])
    thresholds, place = np.unique(-scores, return_inverse=True)
    good = np.concatenate([answers.good_weights, np.zeros(len(answers.bad))])
    bad = np.concatenate([np.zeros(len(answers.good)), answers.bad_weights])
    bad, good = (np.cumsum(np.bincount(place, weights=part, minlength=len(thresholds))) for part in (bad, good))
    return -thresholds, bad, good


def _corners(x: Array, y: Array) -> Array:
    """The indices of the points of a curve at which it turns, and of its ends."""
    turns = np.diff(x)[:-1] * np.diff(y)[1:] != np.diff(x)[1:] * np.diff(y)[:-1]
    return np.flatnonzero(np.concatenate([[True], turns, [True]]))
