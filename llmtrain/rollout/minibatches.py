"""Which prompts make an optimizer step, and the order of steps and packs in each PPO epoch.

Minibatches are cut from the prompts of all ranks before anything is packed, so a minibatch has the same episodes
whatever `microbatch_tokens` and the number of ranks are. Its prompts are neighbours in the sample order, which is
shuffled already, and which ranks take in turns: so every rank has equally many of them, give or take one.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch

from llmtrain.rollout.state import EMPTY, Queue


def assign_minibatches(prompts: Sequence[int], num_minibatches: int) -> dict[int, int]:
    """Prompt -> its minibatch, with equally many prompts in each, give or take one; at most one minibatch per prompt.

    The prompts 3, 4, 7, 8, 9 in two minibatches are {3: 0, 4: 0, 7: 0, 8: 1, 9: 1}.
    """
    num_minibatches = min(num_minibatches, len(prompts))
    return {prompt: number * num_minibatches // len(prompts) for number, prompt in enumerate(prompts)}


def training_order(
    minibatch_of_pack: Sequence[int], most_packs: Sequence[int], epochs: int, name: str, rank: int
) -> Queue:
    """A rank's packs of every step, over all PPO epochs; the same number of packs on every rank.

    `minibatch_of_pack`: of each of this rank's packs. `most_packs`: for each minibatch, the most packs that any rank
    has of it; EMPTY ones fill up the others. `name` is of the rollout: with the epoch it seeds the order of
    minibatches, the same on every rank.
    """
    queue: Queue = []
    for epoch in range(epochs):
        for minibatch in _shuffled(len(most_packs), f"{name}/{epoch}"):
            packs = [pack for pack, number in enumerate(minibatch_of_pack) if number == minibatch]
            order = _shuffled(len(packs), f"{name}/{epoch}/{minibatch}/{rank}")
            empty = [EMPTY] * (most_packs[minibatch] - len(packs))
            queue.append([packs[place] for place in order] + empty)
    return queue


def _shuffled(count: int, name: str) -> list[int]:
    """A permutation of range(count), seeded by a name."""
    seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
    permutation: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return permutation
