"""Packs -> this rank's microbatches of a step: the batch source of stored data.

Each step takes the next `packs_per_step` positions of the sample order; rank r takes every world_size-th of them and
fills microbatches with whole packs. The last step takes what is left. The state of a source counts packs, not steps, so
that a run of one epoch that goes on for a second takes up where its short last step ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import numpy as np
import torch
from torch import Tensor

from llmtrain.batch import IGNORE_INDEX, PackedTokens, empty_batch
from llmtrain.data.loader.order import skipped_position
from llmtrain.data.packing.documents import Pack, WeightedPack
from llmtrain.protocols import BatchType

FetchPack = Callable[[int], Pack]
"""Sample id, which is a position in the sample order -> its pack."""

Collate = Callable[[Sequence[tuple[int, Pack]]], BatchType]
"""Packs, each with its sample id -> a microbatch; of no packs, an empty one."""


class Process(Protocol):
    """One of the processes that share the packs of a step."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...


@dataclass(frozen=True)
class SingleProcess:
    """The only process."""

    rank: int = 0
    world_size: int = 1


def collate(packs: Sequence[tuple[int, Pack]]) -> PackedTokens:
    """Packs, each with its sample id, end to end in one microbatch."""
    if not packs:
        return empty_batch()
    labels = np.concatenate([pack.labels for _, pack in packs])
    lengths = tuple(length for _, pack in packs for length in pack.segment_lengths)
    return PackedTokens(
        input_ids=torch.from_numpy(np.concatenate([pack.input_ids for _, pack in packs])),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        segment_lengths=lengths,
        num_trained=int(np.count_nonzero(labels != IGNORE_INDEX)),
        sample_ids=tuple(sample_id for sample_id, _ in packs),
        label_weights=_label_weights([pack for _, pack in packs]),
    )


def _label_weights(packs: Sequence[Pack]) -> Tensor | None:
    """The weight of every label in the loss (tokens,); None: each has 1."""
    if not any(isinstance(pack, WeightedPack) for pack in packs):
        return None
    weights = [
        pack.label_weights if isinstance(pack, WeightedPack) else (pack.labels != IGNORE_INDEX).astype(np.float32)
        for pack in packs
    ]
    return torch.from_numpy(np.concatenate(weights))


def rank_batches(
    sample_ids: Sequence[int],
    fetch: Callable[[int], Pack],
    packs_per_microbatch: int,
    rank: int,
    world_size: int,
    collate: Collate[BatchType],
) -> Iterator[BatchType]:
    """This rank's microbatches of the given samples; every rank yields equally many, empty ones at the end."""
    per_rank = -(-len(sample_ids) // world_size)
    mine = sample_ids[rank::world_size]
    for start in range(0, per_rank, packs_per_microbatch):
        chosen = mine[start : start + packs_per_microbatch]
        yield collate([(sample_id, fetch(sample_id)) for sample_id in chosen])


def token_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Documents in batches of at most `max_tokens`, the shortest first; a longer one is a batch by itself."""
    batches: list[list[int]] = []
    filled = max_tokens
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or filled + lengths[index] > max_tokens:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += lengths[index]
    return batches


@dataclass(frozen=True)
class PacksOfRun:
    """How many packs a run takes, and how they become steps.

    With `replaces_skipped` samples on the skip-list are replaced by the ones that follow, so that the run takes
    `num_packs` packs; without, it takes the samples before `num_packs` that are left, none of them twice.
    """

    num_packs: int
    per_step: int
    per_microbatch: int
    epoch: Callable[[int], float]  # packs taken -> how often the data has been seen
    replaces_skipped: bool


class StoredBatches(Generic[BatchType]):
    """The batch source of stored packs: steps of equally many packs, the last one perhaps of fewer."""

    def __init__(self, fetch: FetchPack, collate: Collate[BatchType], process: Process, packs: PacksOfRun) -> None:
        self._fetch, self._collate, self._process, self._packs = fetch, collate, process, packs
        self._num_taken = 0
        self._skip_list: list[int] = []

    @property
    def num_skipped(self) -> int:
        """Samples on the skip-list."""
        return len(self._skip_list)

    @property
    def num_taken(self) -> int:
        """Packs of all steps so far."""
        return self._num_taken

    def next_step(self) -> list[BatchType] | None:
        """This rank's microbatches of the present step; None after the last."""
        sample_ids = self._sample_ids()
        if not sample_ids:
            return None
        return list(
            rank_batches(
                sample_ids,
                self._fetch,
                self._packs.per_microbatch,
                self._process.rank,
                self._process.world_size,
                self._collate,
            )
        )

    def advance(self) -> None:
        self._num_taken += len(self._sample_ids())

    @property
    def epoch(self) -> float:
        return self._packs.epoch(self._num_taken)

    def metrics(self) -> dict[str, float]:
        """Nothing of stored data but its epoch changes from step to step."""
        return {}

    def state_without_step(self, earlier: Mapping[str, Any]) -> dict[str, Any]:
        """`earlier`, a state of this source, with the present step's samples, and all skipped since, skipped."""
        skipped = {*earlier["skip_list"], *self._skip_list, *self._sample_ids()}
        return {**earlier, "skip_list": sorted(skipped)}

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self._num_taken, "skip_list": list(self._skip_list)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._num_taken, self._skip_list = int(state["taken"]), [int(position) for position in state["skip_list"]]

    def _sample_ids(self) -> list[int]:
        """The samples of the present step, of all ranks."""
        end = min(self._num_taken + self._packs.per_step, self._packs.num_packs)
        sample_ids = [skipped_position(position, self._skip_list) for position in range(self._num_taken, end)]
        return [each for each in sample_ids if self._packs.replaces_skipped or each < self._packs.num_packs]
