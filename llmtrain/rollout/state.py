"""The rest of a rollout in a checkpoint: the packs of all ranks that are still needed, and their minibatches.

The packs are end to end in one tensor per field, so a checkpoint holds about twenty tensors however many packs there
are. On resume, the same number of ranks gets exactly the microbatches that it would have had. Any other number shares
the packs of each minibatch among its ranks: their sum is the same, so the update is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from llmtrain.batch import PER_EPISODE, PER_RESPONSE_TOKEN, PER_TOKEN, Experience, SamplingMask

EMPTY = -1  # in place of a pack: an empty one, for a rank that has fewer packs of a minibatch than another

Queue = list[list[int]]
"""For each coming minibatch the numbers of its packs, then EMPTY up to the rank that has most packs of it."""

GatherToMain = Callable[[Tensor], list[Tensor]]
"""(elements,) -> the same of every rank, in order, on the main process; [] on the others. Collective."""


def collect(packs: Sequence[Experience], queue: Queue, gather_to_main: GatherToMain) -> dict[str, Tensor]:
    """The packs of all ranks that the queues need, on the main process; {} on the others. Collective."""
    needed = sorted({index for minibatch in queue for index in minibatch if index != EMPTY})
    queue = _renumbered(queue, needed)
    widest = max(len(minibatch) for minibatch in queue)
    slots = [minibatch + [EMPTY] * (widest - len(minibatch)) for minibatch in queue]
    columns = _columns([packs[index] for index in needed]) | {"queues": torch.tensor(slots).flatten()}
    parts = {name: gather_to_main(column) for name, column in columns.items()}
    first = 0
    for slots_of_rank, num_episodes in zip(parts["queues"], parts["num_episodes"], strict=True):
        slots_of_rank[slots_of_rank != EMPTY] += first  # from here on packs are numbered over all ranks
        first += len(num_episodes)
    whole = {name: torch.cat(of_ranks) for name, of_ranks in parts.items() if of_ranks}
    if whole:
        whole["queues"] = whole["queues"].view(len(parts["queues"]), len(queue), -1)
    return whole


def distribute(state: Mapping[str, Tensor], rank: int, world_size: int) -> tuple[list[Experience], Queue]:
    """A rank's packs out of what `collect` returned, and its coming minibatches."""
    queues: Int[Tensor, "ranks minibatches slots"] = state["queues"]
    if len(queues) == world_size:
        is_used = (queues != EMPTY).any(0)  # (minibatches, slots): a minibatch with fewer packs leaves its last unused
        queue = [minibatch[used].tolist() for minibatch, used in zip(queues[rank], is_used, strict=True)]
    else:
        queue = [_share(minibatch, rank, world_size) for minibatch in queues.transpose(0, 1).flatten(1).tolist()]
    needed = sorted({index for minibatch in queue for index in minibatch if index != EMPTY})
    return _packs(state, needed), _renumbered(queue, needed)


def _renumbered(queue: Queue, needed: Sequence[int]) -> Queue:
    """The queue with the places of packs in `needed` as their numbers."""
    number_of = {index: number for number, index in enumerate(needed)} | {EMPTY: EMPTY}
    return [[number_of[index] for index in minibatch] for minibatch in queue]


def _share(minibatch: Sequence[int], rank: int, world_size: int) -> list[int]:
    """A rank's packs of a minibatch: every world_size-th, filled up with EMPTY to as many as any rank has."""
    packs = [index for index in minibatch if index != EMPTY]
    share = packs[rank::world_size]
    return share + [EMPTY] * (-(-len(packs) // world_size) - len(share))


def _columns(packs: Sequence[Experience]) -> dict[str, Tensor]:
    """Every field of the packs end to end.

    A field that no pack has is an empty tensor: ranks gather field by field, and one without packs has to take part.
    """
    columns = {"num_episodes": torch.tensor([len(pack.sample_ids) for pack in packs], dtype=torch.long)}
    for name in Experience.field_names(PER_EPISODE):
        columns[name] = torch.tensor([number for pack in packs for number in vars(pack)[name]], dtype=torch.long)
    for kind, dtype in ((PER_TOKEN, torch.long), (PER_RESPONSE_TOKEN, torch.float32)):
        for name in Experience.field_names(kind):
            parts = [part for pack in packs if (part := vars(pack)[name]) is not None]
            columns[name] = torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)
    mask = SamplingMask.concat([pack.sampling_mask for pack in packs])
    columns["mask_ids"] = torch.zeros(0, dtype=torch.int32) if mask is None else mask.ids
    columns["mask_counts"] = torch.tensor([] if mask is None else mask.counts, dtype=torch.long)
    return columns


def _packs(state: Mapping[str, Tensor], needed: Sequence[int]) -> list[Experience]:
    """The packs with these numbers, cut out of their columns."""
    num_episodes = state["num_episodes"].tolist()
    of_episodes = {name: state[name].split(num_episodes) for name in Experience.field_names(PER_EPISODE)}
    num_tokens = [int(lengths.sum()) for lengths in of_episodes["segment_lengths"]]
    num_responses = [int(lengths.sum()) for lengths in of_episodes["response_lengths"]]
    of_tokens = {name: state[name].split(num_tokens) for name in Experience.field_names(PER_TOKEN)}
    per_response_token = Experience.field_names(PER_RESPONSE_TOKEN)
    of_responses = {name: state[name].split(num_responses) for name in per_response_token if state[name].numel()}
    masks: list[SamplingMask | None] = [None] * len(num_episodes)
    if state["mask_counts"].numel():
        mask = SamplingMask(state["mask_ids"], tuple(state["mask_counts"].tolist()))
        masks = [*mask.split(num_responses)]
    packs = []
    for index in needed:
        fields: dict[str, Any] = {name: tuple(parts[index].tolist()) for name, parts in of_episodes.items()}
        fields |= {name: parts[index].clone() for name, parts in of_tokens.items()}  # without the others' memory
        fields |= dict.fromkeys(per_response_token)
        fields |= {name: parts[index].clone() for name, parts in of_responses.items()}
        packs.append(Experience(sampling_mask=masks[index], **fields))
    return packs
