"""Results of which each rank measures its share: whole on the main process, and failed on all ranks or on none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from llmtrain.eval.tasks.measure import Asking, Watch, measure, measures_of
from llmtrain.eval.tasks.results import ItemResult, TaskResult
from llmtrain.eval.tasks.subject import Subject
from llmtrain.protocols import Ranks
from llmtrain.rollout.sample_log import gather_rows
from llmtrain.system.ending import LaunchEnded
from llmtrain.system.files import one_line
from llmtrain.system.precision import reading
from llmtrain.tasks.rows import TaskRows, numbered_keys
from llmtrain.train.runtime import is_collective_failure

ORDER = "order"


class Unmeasured(ValueError):
    """Something cannot be measured, as every rank knows."""


def together(mine: Callable[[], TaskResult | None], ranks: Ranks) -> TaskResult | None:
    """The result of this rank's share with the items of all ranks, on the main process; None if a rank was stopped.

    The other ranks keep their own share. Collective; raises Unmeasured on every rank if `mine` failed on one.
    """
    result, failure = None, ""
    try:
        result = mine()
    except Exception as error:
        if isinstance(error, LaunchEnded) or is_collective_failure(error):
            raise
        failure = one_line(error)
    failed, stopped = ranks.sum_floats([float(bool(failure)), float(not failure and result is None)])
    if failed:
        raise Unmeasured(failure or "it failed on another process")
    if stopped or result is None:
        return None
    if ranks.world_size == 1:
        return replace(result, items=_unique(result.items))
    first, step = ranks.rank, ranks.world_size  # a share is every world_size-th item
    rows = [{**asdict(item), ORDER: first + place * step} for place, item in enumerate(result.items)]
    gathered = gather_rows(rows, ranks, by=ORDER)
    items = [ItemResult(**{name: value for name, value in row.items() if name != ORDER}) for row in gathered]
    return replace(result, items=_unique(items) if items else result.items)


def tasks_together(task_rows: TaskRows, subject: Subject, asking: Asking, ranks: Ranks) -> TaskResult | None:
    """The results of a task, its items split among ranks, as `together` gives them. Collective."""
    mine = task_rows.rows[ranks.rank :: ranks.world_size]

    def measured() -> TaskResult | None:
        if not mine:
            return TaskResult(task_rows.task.name, measures_of(task_rows.task), [], {})
        return measure(subject, replace(task_rows, rows=mine), asking, Watch())

    with ranks.gathered(subject.model), reading(subject.model, ranks.device, ranks.dtype):
        return together(measured, ranks)


def _unique(items: Sequence[ItemResult]) -> list[ItemResult]:
    """The items, a repeated key with its number."""
    keys = numbered_keys([item.item for item in items])
    return [replace(item, item=key) for item, key in zip(items, keys, strict=True)]
