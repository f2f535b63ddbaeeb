"""What is left of a rollout in a checkpoint: the packs of all ranks, and the minibatches that they belong to.

The packs lie end to end in one tensor a field, so a checkpoint holds a dozen tensors however many packs there are. As
many ranks as there were get the very microbatches they would have had. Any other number shares the packs of each
minibatch anew: the sum over them is the same, and so the update is, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from llmtrain.batch import Experience, KeptTokens
from llmtrain.rollout.packing import join_kept

Queue = list[list[int]]
"""The packs of each minibatch to come, then -1 for each empty one, up to the rank that has most packs of it."""

GatherToMain = Callable[[Tensor], list[Tensor]]
"""(elements,) -> the same of every rank, in order, on the main process; nothing on the others. Collective."""

OF_EPISODES = ("segment_lengths", "response_lengths", "sample_ids")
OF_TOKENS = ("input_ids", "labels", "position_ids")
OF_RESPONSES = ("old_logprobs", "ref_logprobs", "advantages", "old_values", "returns")


def collect(packs: Sequence[Experience], queue: Queue, gather_to_main: GatherToMain) -> dict[str, Tensor]:
    """The packs of all ranks that minibatches to come need, on the main process; nothing on the others. Collective."""
    needed = sorted({index for minibatch in queue for index in minibatch if index >= 0})
    number_of = {index: number for number, index in enumerate(needed)} | {-1: -1}
    left = [packs[index] for index in needed]
    widest = max(len(minibatch) for minibatch in queue)
    slots = [[number_of[index] for index in minibatch] + [-1] * (widest - len(minibatch)) for minibatch in queue]
    columns = {
        "num_episodes": torch.tensor([len(pack.sample_ids) for pack in left], dtype=torch.long),
        "queues": torch.tensor(slots).flatten(),
    }
    for name in OF_EPISODES:
        columns[name] = torch.tensor([n for pack in left for n in vars(pack)[name]], dtype=torch.long)
    for names, dtype in ((OF_TOKENS, torch.long), (OF_RESPONSES, torch.float32)):
        for name in names:
            found = [vars(pack)[name] for pack in left if vars(pack)[name] is not None]
            columns[name] = torch.cat(found) if found else torch.zeros(0, dtype=dtype)
    kept = join_kept([pack.kept for pack in left if pack.kept is not None])
    columns["kept_ids"] = torch.zeros(0, dtype=torch.int32) if kept is None else kept.ids
    columns["kept_counts"] = torch.tensor([] if kept is None else kept.counts, dtype=torch.long)
    parts = {name: gather_to_main(column) for name, column in columns.items()}
    first = 0
    for mine, counts in zip(parts["queues"], parts["num_episodes"], strict=True):
        mine[mine >= 0] += first  # from here on packs are numbered over all ranks
        first += len(counts)
    whole = {name: torch.cat(part) for name, part in parts.items() if part}
    if whole:
        whole["queues"] = whole["queues"].view(len(parts["queues"]), len(queue), -1)
    return whole


def hand_out(state: Mapping[str, Tensor], rank: int, world_size: int) -> tuple[list[Experience], Queue]:
    """This rank's packs of what `collect` gave, and its minibatches to come."""
    queues: Int[Tensor, "ranks minibatches slots"] = state["queues"]
    if len(queues) == world_size:
        filled = (queues >= 0).any(0)  # (minibatches, slots); of minibatches that need fewer the last ones are not
        mine: Queue = [minibatch[used].tolist() for minibatch, used in zip(queues[rank], filled, strict=True)]
    else:
        mine = [_share(minibatch, rank, world_size) for minibatch in queues.transpose(0, 1).flatten(1).tolist()]
    needed = sorted({index for minibatch in mine for index in minibatch if index >= 0})
    number_of = {index: number for number, index in enumerate(needed)} | {-1: -1}
    packs = _unpacked(state, set(needed))
    return packs, [[number_of[index] for index in minibatch] for minibatch in mine]


def _share(minibatch: Sequence[int], rank: int, world_size: int) -> list[int]:
    """A rank's packs of a minibatch, as many as any rank's."""
    packs = [index for index in minibatch if index >= 0]
    mine = packs[rank::world_size]
    return mine + [-1] * (-(-len(packs) // world_size) - len(mine))


def _unpacked(state: Mapping[str, Tensor], needed: set[int]) -> list[Experience]:
    """The packs of these numbers, in order."""
    counts = state["num_episodes"].tolist()
    of_episodes = {name: state[name].split(counts) for name in OF_EPISODES}
    num_tokens = [int(lengths.sum()) for lengths in of_episodes["segment_lengths"]]
    num_responses = [int(lengths.sum()) for lengths in of_episodes["response_lengths"]]
    of_tokens = {name: state[name].split(num_tokens) for name in OF_TOKENS}
    of_responses = {name: state[name].split(num_responses) for name in OF_RESPONSES if state[name].numel()}
    kept = _split_kept(state, num_responses)
    packs = []
    for index in range(len(counts)):
        if index in needed:
            fields: dict[str, Any] = {name: tuple(parts[index].tolist()) for name, parts in of_episodes.items()}
            fields |= {name: parts[index].clone() for name, parts in of_tokens.items()}
            fields |= {
                name: of_responses[name][index].clone() if name in of_responses else None for name in OF_RESPONSES
            }
            packs.append(Experience(kept=kept[index], **fields))
    return packs


def _split_kept(state: Mapping[str, Tensor], num_responses: Sequence[int]) -> list[KeptTokens | None]:
    """What the responses of each pack were drawn among."""
    if not state["kept_counts"].numel():
        return [None] * len(num_responses)
    counts = state["kept_counts"].split(list(num_responses))
    ids = state["kept_ids"].split([int(part.sum()) for part in counts])
    return [KeptTokens(mine.clone(), tuple(of_tokens.tolist())) for mine, of_tokens in zip(ids, counts, strict=True)]
