"""Items of which each rank measures its share: whole on the main process, and failed on all ranks or on none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from llmtrain.eval.tasks.measure import Asking, result_of
from llmtrain.eval.tasks.results import ItemResult, TaskResult
from llmtrain.eval.tasks.shares import Share, items_of_all, share_measured
from llmtrain.eval.tasks.subject import Subject
from llmtrain.protocols import Ranks
from llmtrain.system.ending import LaunchEnded
from llmtrain.system.files import one_line
from llmtrain.system.precision import reading
from llmtrain.tasks.rows import TaskRows, numbered_keys
from llmtrain.train.runtime import is_collective_failure


class Unmeasured(ValueError):
    """Something cannot be measured, as every rank knows."""


def together(
    mine: Callable[[], Share | None], ranks: Ranks, *, calls_collectives: bool = False
) -> list[ItemResult] | None:
    """The items of all ranks, on the main process, and [] on the others; None if a rank was stopped.

    Collective; raises Unmeasured on every rank if `mine` failed on one. If it calls collectives and there are other
    ranks, these wait for the one that failed in the middle of them: then its error ends the run, as in an evaluation.
    """
    share, failure = None, ""
    try:
        share = mine()
    except Exception as error:
        leaves_others = calls_collectives and ranks.world_size > 1
        if leaves_others or isinstance(error, LaunchEnded) or is_collective_failure(error):
            raise
        failure = one_line(error)
    failed, stopped = ranks.sum_floats([float(bool(failure)), float(not failure and share is None)])
    if failed:
        raise Unmeasured(failure or "it failed on another process")
    if stopped or share is None:
        return None
    return unique(items_of_all(share, ranks))


def tasks_together(task_rows: TaskRows, subject: Subject, asking: Asking, ranks: Ranks) -> TaskResult | None:
    """The results of a task, its items split among ranks, as `together` gives them. Collective."""
    with ranks.gathered(subject.model), reading(subject.model, ranks.device, ranks.dtype):
        items = together(lambda: share_measured(task_rows, subject, asking, ranks), ranks)
    return None if items is None else result_of(task_rows, asking, items)


def unique(items: Sequence[ItemResult]) -> list[ItemResult]:
    """The items, a repeated key with its number."""
    keys = numbered_keys([item.item for item in items])
    return [replace(item, item=key) for item, key in zip(items, keys, strict=True)]
