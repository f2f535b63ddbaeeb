"""Which groups of a rollout make an optimizer step, and the order of steps and of their packs in each pass.

A minibatch is cut from the groups of all ranks before anything is packed: it has the same episodes whatever
`microbatch_tokens` and the number of ranks are. Its groups are neighbours in the order of prompts, which is shuffled
itself, so the ranks have equally many of them, up to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch

from llmtrain.rollout.state import Queue


def minibatch_of(groups: Sequence[int], num_minibatches: int) -> dict[int, int]:
    """The minibatch of each group: equally many groups in each, up to one; of fewer groups than minibatches, one."""
    num_minibatches = min(num_minibatches, len(groups))
    return {group: number * num_minibatches // len(groups) for number, group in enumerate(groups)}


def training_order(of_packs: Sequence[int], most_packs: Sequence[int], epochs: int, name: str, rank: int) -> Queue:
    """A rank's packs of every step of all passes, with empty ones behind them up to the rank that has most.

    `of_packs`: the minibatch of each of this rank's packs; `most_packs`: of each minibatch, over all ranks. `name`
    stands for the rollout: with it and the pass the order of minibatches is given, the same on every rank.
    """
    ordered: Queue = []
    for epoch in range(epochs):
        for number in _shuffled(len(most_packs), f"{name}/{epoch}"):
            packs = [pack for pack, minibatch in enumerate(of_packs) if minibatch == number]
            chosen = [packs[place] for place in _shuffled(len(packs), f"{name}/{epoch}/{number}/{rank}")]
            ordered.append(chosen + [-1] * (most_packs[number] - len(chosen)))
    return ordered


def _shuffled(count: int, name: str) -> list[int]:
    seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
    permutation: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return permutation
