"""What is left of a rollout in a checkpoint: nothing is lost, and any number of ranks shares the same minibatches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import chain

import pytest
import torch
from torch import Tensor

from llmtrain.batch import Experience, SamplingMask
from llmtrain.rollout.state import Queue, collect, distribute
from llmtrain.train.checkpoint_writer import join_tensors, split_tensors

Rank = tuple[list[Experience], Queue]


def pack(first: int, num_episodes: int, *, whole: bool = True) -> Experience:
    """Episodes `first`, `first` + 1, ... of growing length; `whole`: with critic, reference and sampling masks."""
    responses = tuple(range(1, num_episodes + 1))
    segments = tuple(3 + length for length in responses)
    generator = torch.Generator().manual_seed(first)
    drawn = [torch.randn(sum(responses), generator=generator) for _ in range(5)]
    counts = tuple(1 + (first + place) % 3 for place in range(sum(responses)))
    ids = torch.arange(sum(segments))
    return Experience(
        input_ids=ids + first,
        labels=ids - first,
        position_ids=ids,
        segment_lengths=segments,
        response_lengths=responses,
        old_logprobs=drawn[0],
        ref_logprobs=drawn[1] if whole else None,
        advantages=drawn[2],
        old_values=drawn[3] if whole else None,
        returns=drawn[4] if whole else None,
        sample_ids=tuple(range(first, first + num_episodes)),
        sampling_mask=SamplingMask(torch.arange(sum(counts), dtype=torch.int32), counts) if whole else None,
    )


def collected(ranks: Sequence[Rank]) -> dict[str, Tensor]:
    """What the main process collects of all ranks, as it comes back from a checkpoint."""
    sent: list[list[Tensor]] = []
    for packs, queue in ranks:
        mine: list[Tensor] = []

        def send(column: Tensor, mine: list[Tensor] = mine) -> list[Tensor]:
            mine.append(column)
            return []

        assert collect(packs, queue, send) == {}
        sent.append(mine)
    columns = zip(*sent, strict=True)
    plain, tensors = split_tensors(collect(*ranks[0], lambda column: list(next(columns))))
    return join_tensors(plain, tensors.__getitem__)


def two_ranks(whole: bool = True) -> list[Rank]:
    """Five packs on two ranks, of which one is not needed any more, in two minibatches."""
    many = [pack(first, 2, whole=whole) for first in (0, 10, 20)]
    few = [pack(first, 3, whole=whole) for first in (30, 40)]
    return [(many, [[2, 0], [0, -1]]), (few, [[0, -1], [1, 0]])]


def minibatches(rank: Rank) -> list[list[tuple[int, ...]]]:
    """The samples of each pack of each minibatch, without the empty ones."""
    packs, queue = rank
    return [[packs[index].sample_ids for index in minibatch if index >= 0] for minibatch in queue]


def assert_same(one: Experience, other: Experience) -> None:
    for field in fields(Experience):
        value, found = getattr(one, field.name), getattr(other, field.name)
        if isinstance(value, SamplingMask):
            assert torch.equal(value.ids, found.ids) and value.counts == found.counts
        else:
            assert torch.equal(value, found) if isinstance(value, Tensor) else value == found, field.name


@pytest.mark.parametrize("whole", [True, False])
def test_as_many_ranks_get_the_microbatches_that_they_had(whole: bool) -> None:
    ranks = two_ranks(whole)
    state = collected(ranks)
    for rank, (packs, queue) in enumerate(ranks):
        found, order = distribute(state, rank, 2)
        assert [[index < 0 for index in minibatch] for minibatch in order] == [[i < 0 for i in m] for m in queue]
        for minibatch, again in zip(queue, order, strict=True):
            for index, number in zip(minibatch, again, strict=True):
                if index >= 0:
                    assert_same(packs[index], found[number])


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_other_ranks_share_the_packs_of_each_minibatch(world_size: int) -> None:
    ranks = two_ranks()
    state = collected(ranks)
    shared = [distribute(state, rank, world_size) for rank in range(world_size)]
    wanted = [sorted(one + other) for one, other in zip(*map(minibatches, ranks), strict=True)]
    found = [sorted(chain.from_iterable(parts)) for parts in zip(*map(minibatches, shared), strict=True)]
    assert found == wanted
    assert len({tuple(len(minibatch) for minibatch in queue) for _, queue in shared}) == 1


def test_packs_that_no_minibatch_needs_are_not_kept() -> None:
    assert collected(two_ranks())["sample_ids"].tolist() == [0, 1, 20, 21, 30, 31, 32, 40, 41, 42]


def test_minibatches_of_unequally_many_packs_come_back_without_more_empty_ones() -> None:
    packs = [[pack(first, 1) for first in firsts] for firsts in ((0, 10, 20, 30), (40, 50))]
    queues: list[Queue] = [[[0, 1, 2], [3]], [[0, -1, -1], [1]]]
    state = collected(list(zip(packs, queues, strict=True)))
    assert [distribute(state, rank, 2)[1] for rank in (0, 1)] == queues
