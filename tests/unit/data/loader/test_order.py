"""The order of samples: a permutation, a pure function, a mixture that keeps its proportions."""

import math
import tracemalloc
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from itertools import pairwise

import numpy as np
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


def is_even(found: Iterable[Hashable], num_possible: int) -> bool:
    """Whether all that is possible comes equally often: chi-square within five standard deviations of its mean."""
    counts = Counter(found)
    expected = counts.total() / num_possible
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    chi_square += (num_possible - len(counts)) * expected
    freedom = num_possible - 1
    return abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def epochs_of(order: SampleOrder, num_epochs: int) -> list[tuple[int, ...]]:
    size = order.epoch_size
    packs = [order(position)[1] for position in range(size * num_epochs)]
    return [tuple(packs[start : start + size]) for start in range(0, len(packs), size)]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_every_order_of_few_packs_is_equally_likely(size: int) -> None:
    epochs = [epoch for seed in range(30) for epoch in epochs_of(SampleOrder([size], None, seed), 400)]
    assert is_even(epochs, math.factorial(size))


@pytest.mark.parametrize("size", [3, 4, 5])
def test_an_epoch_says_nothing_about_the_next_one(size: int) -> None:
    runs = [epochs_of(SampleOrder([size], None, seed), 200) for seed in range(20)]
    turns: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], tuple[int, ...]]] = {
        "first and first": lambda a, b: (a[0], b[0]),
        "last and first": lambda a, b: (a[-1], b[0]),
    }
    for turn in turns.values():
        assert is_even((turn(a, b) for run in runs for a, b in pairwise(run)), size * size)
    moves = (tuple(b.index(pack) for pack in a) for run in runs for a, b in pairwise(run))
    assert is_even(moves, math.factorial(size))


def test_the_epochs_of_weighted_sources_are_as_even() -> None:
    order = SampleOrder([4, 4], [1, 2], seed=0)
    packs = [pack for source, pack in map(order, range(30_000)) if source == 0]
    assert is_even((tuple(packs[i : i + 4]) for i in range(0, len(packs) - 4, 4)), 24)


@pytest.mark.parametrize("size", [4095, 4096, 4097, 9000, 70_000])
def test_packs_of_any_number_come_anywhere(size: int) -> None:
    drawn, parts = np.random.default_rng(size), 12
    moves = []
    for key in drawn.integers(1 << 62, size=150).tolist():
        moves += [(index, permuted_index(index, size, key)) for index in drawn.integers(size, size=60).tolist()]
    assert is_even(((a * parts // size, b * parts // size) for a, b in moves), parts * parts)


@pytest.mark.parametrize("size", [4097, 9000])
def test_neighbours_are_sent_to_unrelated_places(size: int) -> None:
    """Also those that differ in one half of their bits, which a Feistel network of few rounds keeps related."""
    parts = 10
    for stride in (1, 64, 128):
        keys = np.random.default_rng(stride).integers(1 << 62, size=6000).tolist()
        pairs = ((permuted_index(7, size, key), permuted_index(7 + stride, size, key)) for key in keys)
        assert is_even(((a * parts // size, b * parts // size) for a, b in pairs), parts * parts)


@pytest.mark.parametrize("weight", [1e-6, 1e-12])
def test_a_tiny_weight_costs_no_more_than_another(weight: float) -> None:
    order = SampleOrder([50, 50], [1, weight], seed=1)
    tracemalloc.start()
    sources = {order(position)[0] for position in (0, 3_000_000, 3_000_001, 10**12)}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sources == {0}
    assert peak < 1 << 20


@pytest.mark.parametrize("weights", [[1, 1e-6], [1e-6, 1], [0.3, 1e-6, 0.7], [1, 2, 3, 4e-6, 5], [1] * 50])
@pytest.mark.parametrize("position", [1024, 256 * 10**4, 10**9 + 7, 10**13])
def test_weighted_sources_are_taken_in_proportion(weights: list[float], position: int) -> None:
    order = SampleOrder([50] * len(weights), weights, seed=1)
    taken = order.taken(position)
    assert sum(taken) == position
    for count, weight in zip(taken, weights, strict=True):
        assert abs(count - position * weight / sum(weights)) <= max(3, 40 * (position % 256 > 0), position * 1e-15)


def test_what_was_taken_is_what_came() -> None:
    order = SampleOrder([5, 9, 2], [1, 5, 0.01], seed=3)
    came = Counter(order(position)[0] for position in range(3000))
    assert order.taken(3000) == [came[source] for source in range(3)]
