"""Results item by item, their measures with intervals, and the file that holds them.

The first line of the file is about the model and the tasks, each other one about an item. `llmtrain compare` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llmtrain.protocols import Report
from llmtrain.statistics.intervals import clustered_mean, clustered_proportion, mean_interval, wilson_interval
from llmtrain.statistics.measures import Measure as Measure
from llmtrain.system.files import write_bytes
from llmtrain.system.finite import is_number
from llmtrain.system.json_lines import json_line, parsed

FREE_RESULTS = "free some space, or have them written elsewhere"
FORMAT = 1
KIND = "llmtrain evaluation"
WEIGHTS = "weights"
OF_MODEL = (WEIGHTS, "tokenizer", "dtype")
"""What says in a file of results which model they are of, wherever it was."""


ACC = Measure("acc", True, "share")
CHANCE = "chance"
CHOICE_ACC = Measure("acc", True, "share", chance=CHANCE)
ACC_NORM = Measure("acc_norm", True, "share", chance=CHANCE)
BITS_PER_BYTE = Measure("bits_per_byte", False, "per weight", "bytes")
NATS_PER_TOKEN = Measure("nats_per_token", False, "per weight", "tokens")
NATS = Measure("nats", False, "mean")
ENDS = Measure("ends", True, "share")


@dataclass(frozen=True)
class ItemResult:
    """What became of one item."""

    task: str
    item: str  # its key
    where: str
    values: Mapping[str, float]  # a measure's value of it, before any division; and the weights
    details: Mapping[str, Any] = field(default_factory=dict)  # what a person looks at: logprobs, the response
    cluster: str = ""  # items of one cluster, such as those of a template, are not independent; "": it is alone


@dataclass(frozen=True)
class TaskResult:
    """A task's items and what is measured of each."""

    task: str
    measures: Sequence[Measure]
    items: Sequence[ItemResult]
    facts: Mapping[str, Any]  # settings that decide the numbers
    notes: Sequence[str] = ()  # what a reader of the numbers has to know


@dataclass(frozen=True)
class Estimate:
    """A measure's value with its 95 % interval, NaN where there is none."""

    value: float
    low: float
    high: float
    num_items: int
    num_units: int  # that the interval is over: clusters, or items that are each alone
    chance: float = math.nan  # what guessing gets; NaN if that is not known

    @property
    def against_chance(self) -> str:
        """Whether the interval leaves out what guessing gets; "" if that is not known."""
        if math.isnan(self.chance) or math.isnan(self.low):
            return ""
        if self.low <= self.chance <= self.high:
            return "not distinguishable from chance"
        return "above chance" if self.value > self.chance else "below chance"


@dataclass(frozen=True)
class Evaluation:
    """All results of one model."""

    model: Mapping[str, Any]  # path, tokenizer
    tasks: Mapping[str, TaskResult]


def measured_items(items: Sequence[ItemResult], measure: Measure) -> list[ItemResult]:
    """The items that a measure is of."""
    return [item for item in items if measure.name in item.values] if measure.is_partial else list(items)


def values_of(items: Sequence[ItemResult], measure: Measure) -> list[float]:
    """The value of each item that a measure is of."""
    return [item.values[measure.name] for item in measured_items(items, measure)]


def weights_of(items: Sequence[ItemResult], measure: Measure) -> list[float]:
    """The weight of each item that a measure is of."""
    measured = measured_items(items, measure)
    return [1.0 if measure.weight is None else item.values[measure.weight] for item in measured]


def clusters_of(items: Sequence[ItemResult], measure: Measure) -> list[str] | None:
    """The cluster of each item that a measure is of; None if each item is alone."""
    measured = measured_items(items, measure)
    return [item.cluster or item.item for item in measured] if any(item.cluster for item in measured) else None


def estimate(items: Sequence[ItemResult], measure: Measure) -> Estimate:
    """A measure over items, with its interval: Wilson's of a share, else by the spread between items or clusters."""
    values, clusters = values_of(items, measure), clusters_of(items, measure)
    chance = measure.chance or ""
    # Files of earlier versions hold none.
    of_chance = [item.values[chance] for item in measured_items(items, measure) if chance in item.values]
    return Estimate(
        *_interval(values, weights_of(items, measure), clusters, measure),
        len(values),
        len(values if clusters is None else set(clusters)),
        math.fsum(of_chance) / len(of_chance) if of_chance else math.nan,
    )


def _interval(
    values: Sequence[float], weights: Sequence[float], clusters: Sequence[str] | None, measure: Measure
) -> tuple[float, float, float]:
    """(value, low, high); NaN where there is none."""
    count = len(values)
    if not count or not any(weights):
        return math.nan, math.nan, math.nan
    if clusters is None and measure.unit in ("share", "mean"):
        mean = math.fsum(values) / count
        if measure.unit == "share":
            return mean, *wilson_interval(mean, count)
        return mean, *mean_interval(mean, math.fsum(value**2 for value in values) / count, count)
    rates = [value / weight if weight else 0.0 for value, weight in zip(values, weights, strict=True)]
    each = clusters if clusters is not None else [str(number) for number in range(count)]
    if measure.unit == "share":
        return clustered_proportion(rates, weights, each)
    if measure.unit == "balance":  # as a share, from 0 to 1: so its interval ends at -1 and 1
        value, low, high = clustered_proportion([(rate + 1) / 2 for rate in rates], weights, each)
        return 2 * value - 1, 2 * low - 1, 2 * high - 1
    return clustered_mean(rates, weights, each)


def save_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write the file, whole. Raises ValueError if the disk is full."""
    head = {
        "kind": KIND,
        "format": FORMAT,
        "model": evaluation.model,
        "tasks": {
            name: {
                "measures": [asdict(measure) for measure in result.measures],
                "facts": result.facts,
                "notes": list(result.notes),
                "results": {
                    measure.name: [_number(number) for number in _three(estimate(result.items, measure))]
                    for measure in result.measures
                },
            }
            for name, result in evaluation.tasks.items()
        },
    }
    lines = [head, *(asdict(item) for result in evaluation.tasks.values() for item in result.items)]
    write_bytes(path, "".join(map(json_line, lines)).encode(), FREE_RESULTS)


def with_earlier(evaluation: Evaluation, output: Path, report: Report) -> Evaluation:
    """The results, and those of other tasks that a file has of the same model; `report` gets what becomes of these."""
    try:
        earlier = read_evaluation(output)
    except (OSError, ValueError):  # nothing is there, or something else
        return evaluation
    others = {name: result for name, result in earlier.tasks.items() if name not in evaluation.tasks}
    if not others:
        return evaluation
    named = ", ".join(sorted(others))
    is_same = all(evaluation.model.get(fact) == earlier.model.get(fact) for fact in OF_MODEL)
    if not is_same or WEIGHTS not in earlier.model:
        report(f"{output}: replaces earlier results of other weights, which had {named} too")
        return evaluation
    report(f"{output}: keeps earlier results of the same weights: {named}")
    return replace(evaluation, tasks={**others, **evaluation.tasks})


def read_evaluation(path: Path) -> Evaluation:
    """The results in a file. Raises ValueError, naming the line, if it is none of ours or torn."""
    with path.open("rb") as file:
        head = parsed(file.readline())
        if head is None or head.get("kind") != KIND:
            raise ValueError(f"{path}:1: not a file of `llmtrain eval`")
        if head.get("format") != FORMAT:
            raise ValueError(f"{path}:1: format {head.get('format')}, and this version reads {FORMAT}")
        evaluation, items = _without_items(head, path)
        for number, line in enumerate(file, start=2):
            row = parsed(line)
            try:
                if row is None:
                    raise ValueError("no JSON object")
                item = ItemResult(**row)
                for measure in evaluation.tasks[item.task].measures:
                    if measure.is_partial and measure.name not in item.values:
                        continue
                    for name in (measure.name, measure.weight, measure.chance):
                        if name is not None and not is_number(item.values.get(name)):
                            raise ValueError(f"{name} is missing, or no number")
            except (TypeError, KeyError, ValueError, AttributeError) as error:
                raise ValueError(f"{path}:{number}: not an item of an evaluation ({error})") from None
            items[item.task].append(item)
    return evaluation


def _without_items(head: Mapping[str, Any], path: Path) -> tuple[Evaluation, dict[str, list[ItemResult]]]:
    """What the first line of a file says, and the lists for the items of its tasks. Raises ValueError."""
    try:
        items: dict[str, list[ItemResult]] = {name: [] for name in head["tasks"]}
        tasks = {
            name: TaskResult(
                name,
                [Measure(**each) for each in task["measures"]],
                items[name],
                task["facts"],
                tuple(task.get("notes", ())),
            )
            for name, task in head["tasks"].items()
        }
        return Evaluation(head["model"], tasks), items
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}:1: not the first line of an evaluation ({error})") from None


def _three(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
