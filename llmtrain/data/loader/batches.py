"""Packs -> this rank's microbatches of a step: the batch source of stored data.

Step s takes the positions [s * packs_per_step, (s + 1) * packs_per_step) of the sample order; rank r takes
every world_size-th of them and fills microbatches with whole packs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import numpy as np
import torch

from llmtrain.batch import IGNORE_INDEX, PackedTokens, empty_batch
from llmtrain.data.loader.order import skipped_position
from llmtrain.data.packing.documents import Pack
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
    )


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


class StoredBatches(Generic[BatchType]):
    """The batch source of stored packs: `num_steps` steps of `packs_per_step` packs each."""

    def __init__(
        self,
        fetch: FetchPack,
        collate: Collate[BatchType],
        process: Process,
        *,
        num_steps: int,
        packs_per_step: int,
        packs_per_microbatch: int,
    ) -> None:
        self._fetch, self._collate, self._process = fetch, collate, process
        self._num_steps, self._packs_per_step = num_steps, packs_per_step
        self._packs_per_microbatch = packs_per_microbatch
        self._step = 0
        self._skip_list: list[int] = []

    @property
    def num_skipped(self) -> int:
        """Samples on the skip-list."""
        return len(self._skip_list)

    def next_step(self) -> list[BatchType] | None:
        """This rank's microbatches of the present step; None after the last."""
        if self._step >= self._num_steps:
            return None
        return list(
            rank_batches(
                self._sample_ids(self._step),
                self._fetch,
                self._packs_per_microbatch,
                self._process.rank,
                self._process.world_size,
                self._collate,
            )
        )

    def advance(self) -> None:
        self._step += 1

    def metrics(self) -> dict[str, float]:
        """Nothing: stored data is the same all the time."""
        return {}

    def state_without_step(self, earlier: Mapping[str, Any]) -> dict[str, Any]:
        """`earlier`, a state of this source, with the present step's samples, and all skipped since, skipped."""
        skipped = {*earlier["skip_list"], *self._skip_list, *self._sample_ids(self._step)}
        return {**earlier, "skip_list": sorted(skipped)}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "skip_list": list(self._skip_list)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step, self._skip_list = int(state["step"]), [int(position) for position in state["skip_list"]]

    def _sample_ids(self, step: int) -> list[int]:
        first = step * self._packs_per_step
        return [skipped_position(first + i, self._skip_list) for i in range(self._packs_per_step)]
