"""Held-out packs by source, split among ranks, and the rows of numbers that all ranks found in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from llmtrain.data.loader.batches import Collate, rank_batches
from llmtrain.data.loader.plan import DataPlan
from llmtrain.protocols import Array, BatchType, Ranks


def batches_by_source(plan: DataPlan, ranks: Ranks, collate: Collate[BatchType]) -> Iterator[tuple[int, BatchType]]:
    """(source, microbatch) of this rank's share of the held-out packs; every rank yields equally many."""
    rank, world_size = ranks.rank, ranks.world_size
    for source in range(len(plan.eval)):
        packs = [index for index in range(plan.num_eval_packs) if plan.eval_place(index)[0] == source]
        for batch in rank_batches(packs, plan.eval_pack, plan.packs_per_microbatch, rank, world_size, collate):
            yield source, batch


def rows_of_all_ranks(rows: Sequence[tuple[float, ...]], num_columns: int, ranks: Ranks) -> Array:
    """The rows of every rank, (rows, num_columns) float64. The last column must not be NaN. Collective."""
    longest = int(max(count for (count,) in ranks.gather_floats([len(rows)])))
    padding = [math.nan] * num_columns * (longest - len(rows))  # ranks gather equally many numbers
    numbers = [number for row in rows for number in row] + padding
    table = np.array(ranks.gather_floats(numbers)).reshape(-1, num_columns)
    return table[~np.isnan(table[:, -1])]
