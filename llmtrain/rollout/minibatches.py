"""The order in which a rollout's packs are trained on: minibatches of each pass, shuffled anew in each."""

from __future__ import annotations

from hashlib import blake2b

import torch

from llmtrain.rollout.remaining import Queue


def minibatches(num_packs: int, most_packs: int, num_minibatches: int, epochs: int, name: str) -> Queue:
    """A rank's minibatches of all passes, empty packs among them: as many in each as the rank with most packs needs.

    A pass has no more minibatches than that rank has packs. `name` stands for the rollout and the rank, and is all
    that the order depends on.
    """
    num_minibatches = min(num_minibatches, most_packs)
    ordered: Queue = []
    for epoch in range(epochs if most_packs else 0):
        packs = _shuffled(num_packs, f"{name}/{epoch}")
        each = -(-most_packs // num_minibatches)
        for number in range(num_minibatches):
            chosen = packs[number::num_minibatches]
            ordered.append(chosen + [-1] * (each - len(chosen)))
    return ordered


def _shuffled(count: int, name: str) -> list[int]:
    seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
    permutation: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return permutation
