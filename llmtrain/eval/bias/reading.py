"""Results of measures of bias as a person reads them: value, interval, what is good, and on which side of it it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmtrain.eval.bias.scores import SCORES_ABOUT, SUFFIX
from llmtrain.eval.tasks.results import Estimate, Measure, TaskResult, estimate
from llmtrain.tasks.load import BIAS
from llmtrain.tasks.task import About

MANY = 3  # intervals with an ideal, from which on one of them may well be outside by chance


@dataclass(frozen=True)
class Reading:
    """A measure in words."""

    name: str
    value: str
    interval: str
    good: str
    verdict: str  # whether the interval leaves the ideal out; "" without one
    items: str
    units: str  # that the interval is over


def about_of(task: str) -> About:
    """What a reader of a task's results has to know."""
    return SCORES_ABOUT if task.endswith(SUFFIX) else BIAS[task].about


def intervals_of(result: TaskResult, read: Sequence[Reading]) -> str:
    """What the intervals of a task's readings are, and how many of them miss their ideal without any bias."""
    count = sum(each.verdict != "" for each in read)
    named = " (column units)" if any(each.units != each.items for each in read) else ""
    words = f"95 %, over {about_of(result.task).unit}{named}"
    if count < MANY:
        return words
    return (
        f"{words}, each for itself: of a model without any bias, one in twenty leaves its ideal out by chance, and "
        f"here are {count}, so a part by itself proves little"
    )


def is_bias(task: str) -> bool:
    """Whether results of this name are of a measure of bias."""
    return task.removesuffix(SUFFIX) in BIAS


def readings(result: TaskResult) -> Iterator[Reading]:
    """A reading of each measure."""
    for measure in result.measures:
        found = estimate(result.items, measure)
        yield Reading(
            measure.name,
            _shown(found.value, measure),
            "needs two" if math.isnan(found.low) else f"{_shown(found.low, measure)} to {_shown(found.high, measure)}",
            measure.text(),
            _verdict(found, measure),
            f"{found.num_items:,}",
            f"{found.num_units:,}",
        )


def rows_of(read: Sequence[Reading]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The head and the rows of a table of readings; with the units of the intervals if these are not the items."""
    head: tuple[str, ...] = ("measure", "value", "95 % interval", "good", "it is", "items", "units")
    rows: list[tuple[str, ...]] = [
        (each.name, each.value, each.interval, each.good, each.verdict, each.items, each.units) for each in read
    ]
    if all(each.units == each.items for each in read):
        return head[:-1], [row[:-1] for row in rows]
    return head, rows


def _verdict(found: Estimate, measure: Measure) -> str:
    if measure.ideal is None or math.isnan(found.low):
        return ""
    if found.low <= measure.ideal <= found.high:
        return "not distinguishable from it"
    return "above it" if found.value > measure.ideal else "below it"


def _shown(value: float, measure: Measure) -> str:
    if math.isnan(value):
        return "none"
    return (
        f"{value:.1%}".replace("%", " %")
        if measure.unit == "share"
        else f"{value:+.3f}".replace("+", "", measure.ideal is None)
    )
