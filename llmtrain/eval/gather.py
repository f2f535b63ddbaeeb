"""Held-out packs one source at a time, shared among ranks, and the rows of numbers that every rank found in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llmtrain.data.loader.batches import Collate, rank_batches
from llmtrain.data.loader.plan import DataPlan
from llmtrain.protocols import Array, BatchType

Gather = Callable[[Sequence[float]], list[list[float]]]
"""Every rank's numbers, in the order of ranks; equally many on each."""


def batches_by_source(
    plan: DataPlan, rank: int, world_size: int, collate: Collate[BatchType]
) -> Iterator[tuple[int, BatchType]]:
    """(source, microbatch) of this rank's share of a plan's held-out packs; every rank yields equally many."""
    for source in range(len(plan.eval)):
        packs = [index for index in range(plan.num_eval_packs) if plan.eval_place(index)[0] == source]
        for batch in rank_batches(packs, plan.eval_pack, plan.packs_per_microbatch, rank, world_size, collate):
            yield source, batch


def rows_of_all_ranks(rows: Sequence[tuple[float, ...]], num_columns: int, gather: Gather) -> Array:
    """The rows of every rank, (rows, num_columns) float64; the last column of none may be NaN. Collective."""
    longest = int(max(count for (count,) in gather([len(rows)])))
    padding = [math.nan] * num_columns * (longest - len(rows))
    table = np.array(gather([number for row in rows for number in row] + padding)).reshape(-1, num_columns)
    return table[~np.isnan(table[:, -1])]
