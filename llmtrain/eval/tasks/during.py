"""An evaluation of a run that also measures tasks: each rank its share of the items.

The numbers are `eval_task/TASK/MEASURE`, with `_low` and `_high`, their 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from llmtrain.eval.tasks.measure import Asking, Watch, measure, measures_of
from llmtrain.eval.tasks.results import Measure, TaskResult, values_of, weights_of
from llmtrain.eval.tasks.subject import Subject
from llmtrain.protocols import Evaluate, Ranks
from llmtrain.statistics.intervals import mean_interval, ratio_interval, wilson_interval
from llmtrain.system.precision import reading
from llmtrain.tasks.rows import TaskRow, TaskRows
from llmtrain.tasks.task import BiasItem

PREFIX = "eval_task"


@dataclass(frozen=True)
class WithTasks:
    """Another evaluation, and tasks, whose items are split among ranks."""

    evaluate: Evaluate
    tasks: Sequence[TaskRows]
    subject: Subject
    asking: Asking
    ranks: Ranks

    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """What the other evaluation returns, and each measure; None if asked to stop.

        A model whose held-out loss is not finite is not measured.
        """
        values = self.evaluate(model, should_stop)
        if values is None or not math.isfinite(values["eval_loss"]):
            return values
        found = dict(values)
        for task_rows in self.tasks:
            numbers = self._measured(task_rows)
            if numbers is None:
                return None
            found |= numbers
            name, first = next((key, value) for key, value in numbers.items())
            found["summary"] = f"{found['summary']}, {name.removeprefix(f'{PREFIX}/').replace('/', ' ')} {first:.4g}"
        return found

    def _measured(self, task_rows: TaskRows) -> dict[str, float] | None:
        """The measures of a task over all ranks. Collective."""
        ranks, subject = self.ranks, self.subject
        mine = rows_of_rank(task_rows, ranks.rank, ranks.world_size)
        result: TaskResult | None = None
        stopped = False
        with ranks.gathered(subject.model), reading(subject.model, ranks.device, ranks.dtype):
            if mine:
                result = measure(subject, replace(task_rows, rows=mine), self.asking, Watch())
                stopped = result is None
        if ranks.any(stopped):
            return None
        numbers: dict[str, float] = {}
        for each in measures_of(task_rows.task):
            numbers |= _together(task_rows.task.name, each, result, ranks)
        return numbers


def rows_of_rank(task_rows: TaskRows, rank: int, world_size: int) -> list[TaskRow[object]]:
    """Every so many-th row, or block of rows that belong together."""
    numbers: dict[str, int] = {}
    mine = []
    for place, row in enumerate(task_rows.rows):
        block = (row.item.block if isinstance(row.item, BiasItem) else "") or f"row {place}"
        if numbers.setdefault(block, len(numbers)) % world_size == rank:
            mine.append(row)
    return mine


def _together(task: str, each: Measure, result: TaskResult | None, ranks: Ranks) -> dict[str, float]:
    """A measure over the items of all ranks, with its interval where there is one. Collective."""
    items = () if result is None else result.items
    pairs = list(zip(values_of(items, each), weights_of(items, each), strict=True))
    columns = [(1.0, x, n, x * x, x * n, n * n, float(x not in (0, 1))) for x, n in pairs]
    count, total, weight, squares, *rest = ranks.sum_floats(
        [sum(column) for column in zip(*columns, strict=True)] or [0.0] * 7
    )
    if not weight:
        return {}
    value = total / weight
    if each.weight is not None:
        low, high = ratio_interval([count, total, weight, squares, *rest[:2]])
    elif not rest[-1]:
        low, high = wilson_interval(value, count)
    else:
        low, high = mean_interval(value, squares / count, count)
    name = f"{PREFIX}/{task}/{each.name}"
    return {name: value} | ({} if math.isnan(low) else {f"{name}_low": low, f"{name}_high": high})
