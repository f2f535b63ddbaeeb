"""The report on single labelled answers, against counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmtrain.eval.kto import AnswerRewards, report_of


def rewarded(desirable: list[float], rewards: list[float], weights: list[float] | None = None) -> AnswerRewards:
    lengths = [float(number) for number in range(1, len(rewards) + 1)]
    columns = (desirable, rewards, lengths, weights or [1.0] * len(rewards))
    return AnswerRewards(*(np.array(column) for column in columns))


def test_answers_are_counted_by_label_and_by_the_kl() -> None:
    report = report_of(rewarded([1, 1, 0, 0, 0], [0.5, 0.1, 0.1, -1.0, 0.3], [1, 2, 1, 1, 0.5]), 0.2)
    assert report["confusion"] == {
        "threshold": 0.2,
        "true_positives": 1.0,
        "false_negatives": 2.0,
        "false_positives": 0.5,
        "true_negatives": 2.0,
    }
    # Of 3 x 2.5 pairs: 1 x 2.5 won by 0.5; 0.1 wins against -1.0 (2), ties with 0.1 (2 x 1/2), loses to 0.3.
    assert report["auc"] == pytest.approx((2.5 + 2 + 1) / 7.5)
    assert (report["answers"], sum(report["reward_histogram"]["bad"])) == (5.5, 2.5)
    assert set(report["examples"]["desirable"]) == {0.0, 1.0}


def test_the_correlation_with_length_is_of_all_answers() -> None:
    report = report_of(rewarded([1, 0, 1], [1.0, 4.0, 9.0]), 0.0)
    assert report["length"]["spearman"] == pytest.approx(1.0) and 0.9 < report["length"]["pearson"] < 1


def test_answers_of_one_label_have_no_roc_but_counts() -> None:
    report = report_of(rewarded([1, 1], [1.0, -1.0]), 0.0)
    assert math.isnan(report["auc"]) and report["roc"]["thresholds"] == []
    assert (report["confusion"]["true_positives"], report["confusion"]["false_negatives"]) == (1.0, 1.0)


def test_a_reward_that_is_not_finite_is_only_counted() -> None:
    report = report_of(rewarded([1, 0, 1], [1.0, 0.0, math.nan]), 0.5)
    assert (report["answers"], report["answers_not_finite"], report["auc"]) == (3.0, 1.0, 1.0)
    assert sum(report["reward_histogram"]["good"]) == 1.0
