"""A task whose items are split among ranks: each measures a share, and the main process gets the items of all.

What is derived of items (measures, intervals, notes) needs all of them: a share has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from llmtrain.eval.tasks.measure import Asking, item_results
from llmtrain.eval.tasks.results import ItemResult
from llmtrain.eval.tasks.subject import Subject
from llmtrain.protocols import Ranks
from llmtrain.rollout.sample_log import gather_rows
from llmtrain.tasks.rows import TaskRows
from llmtrain.tasks.task import BiasItem

ORDER = "order"

Share = Sequence[tuple[int, ItemResult]]
"""The items of a rank, each with its place among those of all ranks."""


def share_measured(task_rows: TaskRows, subject: Subject, asking: Asking, ranks: Ranks) -> Share | None:
    """This rank's share of a task; None if asked to stop. Weights are whole and read (`gathered`, `reading`).

    No collective. Raises ValueError as `item_results` does.
    """
    places = places_of_rank(task_rows, ranks.rank, ranks.world_size)
    if not places:
        return []
    items = item_results(subject, replace(task_rows, rows=[task_rows.rows[place] for place in places]), asking)
    return None if items is None else list(zip(places, items, strict=True))


def items_of_all(share: Share, ranks: Ranks) -> list[ItemResult]:
    """The items of all ranks, by their places, on the main process; [] on the others. Collective."""
    if ranks.world_size == 1:
        return [item for _, item in share]
    gathered = gather_rows([{**asdict(item), ORDER: place} for place, item in share], ranks, by=ORDER)
    return [ItemResult(**{name: value for name, value in row.items() if name != ORDER}) for row in gathered]


def places_of_rank(task_rows: TaskRows, rank: int, world_size: int) -> list[int]:
    """Places of every so many-th row, or block of rows that belong together."""
    numbers: dict[str, int] = {}
    mine = []
    for place, row in enumerate(task_rows.rows):
        block = (row.item.block if isinstance(row.item, BiasItem) else "") or f"row {place}"
        if numbers.setdefault(block, len(numbers)) % world_size == rank:
            mine.append(place)
    return mine
