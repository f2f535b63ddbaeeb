"""How far a run has come: which evaluation is the best, and when patience is out."""

from __future__ import annotations

import math

import pytest

from llmtrain.train.progress import Progress

NOT_FINITE = [math.nan, math.inf, -math.inf]


def evaluated(*losses: float) -> Progress:
    progress = Progress()
    for loss in losses:
        progress.record_evaluation(loss)
    return progress


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("score_sign", [1.0, -1.0])  # a held-out score enters as its negative
def test_an_evaluation_that_is_not_finite_is_never_the_best_nor_hides_one(bad: float, score_sign: float) -> None:
    assert not Progress().is_best(bad)
    first, later = 2.0 * score_sign, 2.0 * score_sign - 1
    progress = evaluated(bad, first)
    assert (progress.best_loss, progress.evaluations_since_best) == (first, 0)
    assert progress.is_best(later) and not progress.is_best(bad) and not progress.is_best(first)
    assert evaluated(first, bad, later).best_loss == later


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_run_that_was_saved_with_such_a_best_finds_a_better_one(bad: float) -> None:
    progress = Progress()
    progress.load_state_dict(progress.state_dict() | {"best_loss": bad})
    assert progress.is_best(1.0)


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_evaluations_that_are_not_finite_run_patience_out(bad: float) -> None:
    assert evaluated(bad, bad).is_out_of(2) and evaluated(1.0, bad, bad).is_out_of(2)
    assert not evaluated(bad, bad, 1.0).is_out_of(1)
