"""A measure of bias of a language model: the log-likelihoods of an item's texts, and what the task makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from llmtrain.eval.tasks.likelihood import likelihoods, request_of
from llmtrain.eval.tasks.results import ItemResult, Measure, TaskResult
from llmtrain.eval.tasks.subject import Subject
from llmtrain.statistics.measures import PART
from llmtrain.tasks.rows import TaskRow, TaskRows
from llmtrain.tasks.task import BiasItem, BiasTask


def bias_results(
    subject: Subject,
    task: BiasTask,
    task_rows: TaskRows,
    done: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> list[ItemResult] | None:
    """What a measure of bias finds of each row; None if asked to stop. Raises ValueError as `likelihoods` does."""
    items = bias_items(task_rows.rows)
    asked = [
        [
            request_of(subject, context, continuation)
            for context, continuation in zip(item.contexts, item.continuations, strict=True)
        ]
        for item in items
    ]
    found = likelihoods(subject, asked, done, should_stop)
    if found is None:
        return None
    logprobs = [[each.logprob for each in of_item] for of_item in found]
    return [
        ItemResult(
            task.name, row.key, row.where, values, {"logprobs": [round(each, 6) for each in of_item]}, item.cluster
        )
        for row, item, values, of_item in zip(task_rows.rows, items, task.score(items, logprobs), logprobs, strict=True)
    ]


def bias_result(task: BiasTask, task_rows: TaskRows, items: Sequence[ItemResult]) -> TaskResult:
    """The results of a measure of bias from those of all its items."""
    facts = {"source": task.source, "shots": 0, "data": task_rows.path, "interval over": task.about.unit}
    notes = task.notes(bias_items(task_rows.rows))
    return TaskResult(task.name, measures_in(task.measures, items), items, facts, notes)


def bias_items(rows: Sequence[TaskRow[object]]) -> list[BiasItem]:
    """The items of the rows of a measure of bias."""
    items = []
    for row in rows:
        assert isinstance(row.item, BiasItem)
        items.append(row.item)
    return items


def measures_in(measures: Sequence[Measure], items: Sequence[ItemResult]) -> list[Measure]:
    """The measures that items have values of, and after them those of their parts, by name.

    A share of values that are not all 0 and 1 is a mean.
    """
    values: dict[str, list[float]] = {}
    for item in items:
        for name, value in item.values.items():
            values.setdefault(name, []).append(value)
    parts = [
        replace(measure, name=name, is_partial=True)
        for measure in measures
        for name in sorted(values)
        if name.startswith(measure.name + PART)
    ]
    is_clustered = any(item.cluster for item in items)
    return [
        replace(measure, unit="mean")
        if measure.unit == "share" and not is_clustered and not _is_share(values, measure.name)
        else measure
        for measure in (*measures, *parts)
        if measure.name in values
    ]


def _is_share(values: Mapping[str, Sequence[float]], name: str) -> bool:
    return all(value in (0, 1) for value in values[name])
