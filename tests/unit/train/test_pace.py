"""A slow rank is named over many steps, once in a while."""

from __future__ import annotations

import torch

from llmtrain.train.pace import QUIET_SECONDS, WINDOW_STEPS, SlowRank, SlowRanks, Stopwatch


def test_a_rank_that_takes_three_times_as_long_as_the_others_is_named_after_many_steps() -> None:
    ranks = SlowRanks()
    named = [ranks.add([0.1, 0.5, 0.1, 0.12]) for _ in range(WINDOW_STEPS)]
    assert named == [None] * (WINDOW_STEPS - 1) + [SlowRank(1, 0.5, 0.1)]


def test_of_two_ranks_the_slower_is_named() -> None:
    ranks = SlowRanks()
    assert [ranks.add([0.9, 0.1]) for _ in range(WINDOW_STEPS)][-1] == SlowRank(0, 0.9, 0.1)


def test_a_few_slow_steps_are_not_a_slow_rank() -> None:
    ranks = SlowRanks()
    steps = [[0.1, 5.0 if step % 3 == 0 else 0.1] for step in range(3 * WINDOW_STEPS)]  # as a rank that saves or logs
    assert not any(ranks.add(step) for step in steps)


def test_little_time_is_not_worth_a_line() -> None:
    ranks = SlowRanks()
    assert not any(ranks.add([0.001, 0.01]) for _ in range(2 * WINDOW_STEPS))


def test_it_is_named_once_in_a_while() -> None:
    now = 0.0
    ranks = SlowRanks(lambda: now)
    assert sum(ranks.add([0.1, 0.5]) is not None for _ in range(10 * WINDOW_STEPS)) == 1
    now = QUIET_SECONDS + 1
    assert ranks.add([0.1, 0.5]) == SlowRank(1, 0.5, 0.1)


def test_a_rank_measures_its_data_and_its_forward_passes() -> None:
    watch = Stopwatch(torch.device("cpu"))
    assert watch.seconds() == 0
    for mark in (watch.data_is_ready, watch.forward_begins, watch.forward_ends, watch.step_ends):
        mark()
    assert watch.seconds() > 0
