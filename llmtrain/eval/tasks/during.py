"""An evaluation of a run that also measures tasks: each rank its share of the items.

The numbers are `eval_task/TASK/MEASURE`, with `_low` and `_high`, their 95 % interval, and `_chance`, what guessing
gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from llmtrain.eval.tasks.measure import Asking, measures_of, result_of
from llmtrain.eval.tasks.results import Estimate, estimate
from llmtrain.eval.tasks.shares import items_of_all, share_measured
from llmtrain.eval.tasks.subject import Subject
from llmtrain.protocols import Evaluate, Ranks
from llmtrain.system.precision import reading
from llmtrain.tasks.rows import TaskRows

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
            for name, first in list(numbers.items())[:1]:
                words = name.removeprefix(f"{PREFIX}/").replace("/", " ")
                found["summary"] = f"{found['summary']}, {words} {first:.4g}"
        return found

    def _measured(self, task_rows: TaskRows) -> dict[str, float] | None:
        """The measures of a task over the items of all ranks; None if one was stopped. Collective."""
        ranks, subject = self.ranks, self.subject
        with ranks.gathered(subject.model), reading(subject.model, ranks.device, ranks.dtype):
            share = share_measured(task_rows, subject, self.asking, ranks)
        if ranks.any(share is None):
            return None
        assert share is not None
        items = items_of_all(share, ranks)
        found = {each.name: estimate(items, each) for each in result_of(task_rows, self.asking, items).measures}
        names = [each.name for each in measures_of(task_rows.task)]
        mine = [_numbers(found.get(name)) if items else _NOTHING for name in names]  # only the main process has items
        sums = ranks.sum_floats([number for four in mine for number in four])
        numbers: dict[str, float] = {}
        for place, name in enumerate(names):
            fields = (name, f"{name}_low", f"{name}_high", f"{name}_chance")
            known = dict(zip(fields, sums[4 * place : 4 * place + 4], strict=True))
            numbers |= {f"{PREFIX}/{task_rows.task.name}/{k}": v for k, v in known.items() if not math.isnan(v)}
        return numbers


_NOTHING = (0.0,) * 4
_UNKNOWN = (math.nan,) * 4


def _numbers(found: Estimate | None) -> tuple[float, ...]:
    """Value, low, high and what guessing gets; NaN for what is not known."""
    return _UNKNOWN if found is None else (found.value, found.low, found.high, found.chance)
