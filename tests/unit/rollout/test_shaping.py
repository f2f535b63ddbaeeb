"""Score shaping: running moments over ranks, and what a response's length costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmtrain.config.rl import RolloutConfig
from llmtrain.rollout.engine import Generated
from llmtrain.rollout.shaping import RunningScores, overlong_penalty, shaped_scores

SCORES = torch.tensor([3.0, 1.0, -2.0, 1e4 + 0.5, 7.0, 0.25])


def alone(values: list[float]) -> list[float]:
    return values


def shaped(scores: list[float], lengths: list[int], stopped: list[bool], **changes: Any) -> list[float]:
    config = RolloutConfig.model_validate({"rewards": ["length"], "max_new_tokens": 10} | changes)
    responses = [Generated([0] * length, [0.0] * length, end) for length, end in zip(lengths, stopped, strict=True)]
    running = RunningScores().joined_by(torch.tensor(scores), alone)
    found: list[float] = shaped_scores(torch.tensor(scores), responses, config, running).tolist()
    return found


@pytest.mark.parametrize("bounds", [[6], [1, 2, 3], [2, 0, 4], [5, 1]])
def test_moments_in_parts_are_those_of_all_scores(bounds: list[int]) -> None:
    running = RunningScores()
    for part in SCORES.split(bounds):
        running = running.joined_by(part, alone)
    exact = SCORES.double()
    assert running.count == 6
    assert running.mean == pytest.approx(float(exact.mean()), rel=1e-12)
    assert running.squares == pytest.approx(float(((exact - exact.mean()) ** 2).sum()), rel=1e-12)


def test_moments_over_two_ranks_are_those_of_one() -> None:
    before = RunningScores().joined_by(SCORES[:2], alone)
    mine, others = SCORES[2:3], SCORES[3:]

    def sum_over_ranks(values: list[float]) -> list[float]:
        theirs: list[float] = []
        before.joined_by(others, lambda seen: theirs.extend(seen) or seen)  # type: ignore[func-returns-value]
        return [value + other for value, other in zip(values, theirs, strict=True)]

    both, one = before.joined_by(mine, sum_over_ranks), before.joined_by(SCORES[2:], alone)
    assert vars(both) == pytest.approx(vars(one), rel=1e-12)


def test_normalised_scores_have_mean_zero_and_variance_one() -> None:
    found = torch.tensor(shaped([1.0, 2.0, 3.0, 6.0], [1] * 4, [True] * 4, score_normalise=True))
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.var(correction=0)) == pytest.approx(1, abs=1e-6)


def test_scores_that_never_differ_are_normalised_to_zero() -> None:
    assert shaped([5.0, 5.0], [1, 1], [True, True], score_normalise=True) == [0.0, 0.0]


def test_a_penalty_is_in_deviations_where_scores_are_normalised() -> None:
    found = shaped([0.0, 200.0], [10, 10], [True, False], score_normalise=True, missing_eos_penalty=0.5)
    assert found == pytest.approx([-1.0, 0.5])


def test_a_response_without_its_end_loses_the_penalty() -> None:
    assert shaped([1.0, 1.0], [3, 10], [True, False], missing_eos_penalty=0.75) == [1.0, 0.25]


def test_overlong_penalty_falls_in_a_straight_line_within_the_buffer() -> None:
    assert overlong_penalty([1, 80, 85, 90, 100, 120], 100, 20).tolist() == pytest.approx([0, 0, -0.25, -0.5, -1, -1])


def test_a_response_within_the_buffer_loses_its_part_of_the_penalty() -> None:
    found = shaped([1.0] * 4, [6, 7, 8, 10], [True] * 4, overlong_buffer_tokens=4, overlong_penalty=2.0)
    assert found == pytest.approx([1.0, 0.5, 0.0, -1.0])


def test_the_clip_comes_last() -> None:
    assert shaped([3.0, -3.0, 0.5], [10] * 3, [False] * 3, missing_eos_penalty=1.0, score_clip=1.5) == [1.5, -1.5, -0.5]
