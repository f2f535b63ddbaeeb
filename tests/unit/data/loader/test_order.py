"""The order of samples: a permutation, a pure function, a mixture that keeps its proportions."""

from collections import Counter
from itertools import pairwise

import pytest

from llmtrain.data.loader.order import SampleOrder, permuted_index, skipped_position


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 1023])
def test_permuted_index_is_a_permutation(size: int) -> None:
    assert sorted(permuted_index(i, size, key=7) for i in range(size)) == list(range(size))


def test_permutation_depends_on_its_key_and_moves_most_indices() -> None:
    first, second = ([permuted_index(i, 1000, key) for i in range(1000)] for key in (1, 2))
    assert first != second
    assert sum(i == moved for i, moved in enumerate(first)) < 20


def test_neighbours_are_not_kept_together() -> None:
    order = [permuted_index(i, 4096, key=3) for i in range(4096)]
    steps = [abs(a - b) for a, b in pairwise(order)]
    assert 1100 < sum(steps) / len(steps) < 1600  # a uniform permutation's mean is size / 3


def test_permutation_of_a_huge_range_needs_no_memory() -> None:
    assert 0 <= permuted_index(10**12, 10**13, key=5) < 10**13


def test_without_weights_every_pack_comes_once_an_epoch() -> None:
    order = SampleOrder([3, 10, 1], None, seed=1)
    epochs = [[order(position) for position in range(start, start + 14)] for start in (0, 14)]
    expected = sorted((source, pack) for source, count in enumerate([3, 10, 1]) for pack in range(count))
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("weights", [[0.7, 0.2, 0.1], [1.0, 0.001]])
def test_with_weights_any_stretch_keeps_the_proportions(weights: list[float]) -> None:
    order = SampleOrder([50] * len(weights), weights, seed=1)
    total = 20_000
    counts = Counter(order(position)[0] for position in range(total))
    for source, weight in enumerate(weights):
        assert counts[source] == pytest.approx(total * weight / sum(weights), abs=max(1024, 0.01 * total) * 0.3)


def test_with_weights_each_source_runs_through_its_own_epochs() -> None:
    order = SampleOrder([7, 100], [0.5, 0.5], seed=1)
    packs = [pack for source, pack in map(order, range(3000)) if source == 0]
    for start in range(0, len(packs) - 7, 7):
        assert sorted(packs[start : start + 7]) == list(range(7))


def test_order_does_not_depend_on_what_was_asked_before() -> None:
    straight = SampleOrder([20, 30], [0.3, 0.7], seed=4)
    jumping = SampleOrder([20, 30], [0.3, 0.7], seed=4)
    forward = [straight(position) for position in range(5000)]
    assert [jumping(position) for position in range(4999, -1, -1)] == forward[::-1]


def test_seeds_give_different_orders() -> None:
    first, second = (SampleOrder([500], None, seed=seed) for seed in (1, 2))
    assert [first(i) for i in range(20)] != [second(i) for i in range(20)]


def test_skipped_positions_are_left_out_and_nothing_else() -> None:
    assert [skipped_position(i, [2, 3, 7]) for i in range(6)] == [0, 1, 4, 5, 6, 8]
    assert [skipped_position(i, []) for i in range(3)] == [0, 1, 2]
