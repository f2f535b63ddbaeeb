"""Minibatches are equal shares of a rollout's groups, in an order that all ranks have in common."""

from __future__ import annotations

from collections import Counter

from llmtrain.rollout.minibatches import assign_minibatches, training_order

MOST = [2, 1, 3]  # packs of each minibatch on the rank that has most
RANKS = ([0, 0, 1, 2], [1, 2, 2, 2])  # the minibatch of each pack


def test_minibatches_have_equally_many_groups_up_to_one() -> None:
    sizes = Counter(assign_minibatches(range(40, 51), 4).values())
    assert sorted(sizes) == [0, 1, 2, 3] and sorted(sizes.values()) == [2, 3, 3, 3]


def test_neighbouring_groups_are_in_one_minibatch() -> None:
    assert assign_minibatches([3, 5, 6, 9], 2) == {3: 0, 5: 0, 6: 1, 9: 1}


def test_fewer_groups_than_minibatches_have_one_each() -> None:
    assert assign_minibatches([7, 9], 4) == {7: 0, 9: 1}


def test_every_pack_comes_once_a_pass() -> None:
    for packs in RANKS:
        queue = training_order(packs, MOST, 2, "3/0", 0)
        for steps in (queue[:3], queue[3:]):
            assert sorted(pack for step in steps for pack in step if pack >= 0) == [0, 1, 2, 3]


def test_the_ranks_go_through_the_minibatches_in_the_same_order() -> None:
    queues = [training_order(packs, MOST, 5, "3/0", rank) for rank, packs in enumerate(RANKS)]
    for steps in zip(*queues, strict=True):
        (number,) = {packs[pack] for packs, step in zip(RANKS, steps, strict=True) for pack in step if pack >= 0}
        assert [len(step) for step in steps] == [MOST[number]] * 2


def test_empty_packs_come_last() -> None:
    (step,) = [step for step in training_order([2, 2], MOST, 1, "3/0", 1) if len(step) == 3]
    assert set(step[:2]) == {0, 1} and step[2] == -1


def test_passes_differ_in_order() -> None:
    packs = list(range(8))
    queue = training_order(packs, [1] * 8, 2, "3/0", 0)
    assert queue[:8] != queue[8:]
