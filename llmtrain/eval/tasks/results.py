"""Results item by item, their measures with intervals, and the file that holds them.

The first line of the file is about the model and the tasks, each other one about an item. `llmtrain compare` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmtrain.statistics.intervals import clustered_mean, mean_interval, wilson_interval
from llmtrain.system.files import write_bytes
from llmtrain.system.finite import is_number
from llmtrain.system.json_lines import json_line, parsed

FORMAT = 1
KIND = "llmtrain evaluation"


@dataclass(frozen=True)
class Measure:
    """A number of every item, and how it is averaged."""

    name: str
    higher_is_better: bool | None  # None: neither, as of the length of answers
    unit: Literal["share", "mean", "per weight"]  # share: each item's is 0 or 1; per weight: summed, by summed weights
    weight: str | None = None  # the field of `values` that the sum is divided by


ACC = Measure("acc", True, "share")
ACC_NORM = Measure("acc_norm", True, "share")
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


@dataclass(frozen=True)
class Evaluation:
    """All results of one model."""

    model: Mapping[str, Any]  # path, tokenizer
    tasks: Mapping[str, TaskResult]


def values_of(items: Sequence[ItemResult], measure: Measure) -> list[float]:
    """Each item's value."""
    return [item.values[measure.name] for item in items]


def weights_of(items: Sequence[ItemResult], measure: Measure) -> list[float]:
    """Each item's weight."""
    return [1.0 if measure.weight is None else item.values[measure.weight] for item in items]


def estimate(items: Sequence[ItemResult], measure: Measure) -> Estimate:
    """A measure over items, with its interval: Wilson's of a share, else by the spread between items."""
    values, weights = values_of(items, measure), weights_of(items, measure)
    count = len(values)
    if measure.unit == "per weight":
        rates = [value / weight if weight else 0.0 for value, weight in zip(values, weights, strict=True)]
        return Estimate(*clustered_mean(rates, weights, [item.item for item in items]))
    mean = math.fsum(values) / count
    if measure.unit == "share":
        return Estimate(mean, *wilson_interval(mean, count))
    return Estimate(mean, *mean_interval(mean, math.fsum(value**2 for value in values) / count, count))


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
                    measure.name: [_number(number) for number in vars(estimate(result.items, measure)).values()]
                    for measure in result.measures
                },
            }
            for name, result in evaluation.tasks.items()
        },
    }
    lines = [head, *(asdict(item) for result in evaluation.tasks.values() for item in result.items)]
    write_bytes(path, "".join(map(json_line, lines)).encode())


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
                    for name in (measure.name, measure.weight):
                        if name is not None and not is_number(item.values[name]):
                            raise ValueError(f"{name} is no number")
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
                name, [Measure(**each) for each in task["measures"]], items[name], task["facts"], task.get("notes", [])
            )
            for name, task in head["tasks"].items()
        }
        return Evaluation(head["model"], tasks), items
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}:1: not the first line of an evaluation ({error})") from None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
