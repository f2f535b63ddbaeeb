"""The predictions of all folds -> what cross-validation finds: a mean over items, and its spread over folds.

The interval is over groups of items, which are independent of each other given the models. The standard deviation over
folds is a spread, not an error of the mean: any two training sets share most of their rows, and no unbiased estimate of
that variance exists (Bengio and Grandvalet 2004).
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain.config.recipes import PreferenceStageConfig, SftConfig
from llmtrain.statistics.intervals import clustered_mean, clustered_proportion
from llmtrain.system.files import write_bytes, write_json
from llmtrain.tune.crossval.plan import FREE_DIR, Plan
from llmtrain.tune.crossval.rows import read_records, row_line

PREDICTIONS, DROPPED, RESULT = "predictions.jsonl", "dropped.jsonl", "crossval.json"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """What is averaged over items."""

    key: str  # of a prediction
    name: str
    unit: str
    weight: str | None = None  # key of a prediction; None: every item counts the same
    higher_is_better: bool = False
    is_share: bool = False  # from 0 to 1


LOSS = Measure("loss", "held-out loss", "nats per token", "tokens")
PAIR_LOSS = Measure("loss", "held-out loss", "nats per pair", "weight")
ACCURACY = Measure("correct", "accuracy", "of pairs ranked right", "weight", higher_is_better=True, is_share=True)
SIGNED_REWARD = Measure("signed_reward", "signed reward", "of undesirable answers negated", higher_is_better=True)


def measures_of(plan: Plan) -> tuple[Measure, ...]:
    """What is averaged of a recipe's predictions, the most important first."""
    config = plan.config
    if isinstance(config, SftConfig):
        return (LOSS,)
    if isinstance(config, PreferenceStageConfig) and config.preference.loss == "kto":
        return (SIGNED_REWARD,)
    return ACCURACY, PAIR_LOSS


@dataclass(frozen=True)
class Average:
    """A measure over all items, and over those of each fold."""

    measure: Measure
    mean: float
    low: float  # of the 95 % interval
    high: float
    by_fold: Sequence[float]  # NaN of a fold without items

    @property
    def folds(self) -> list[float]:
        """Of the folds that have items."""
        return [value for value in self.by_fold if math.isfinite(value)]

    @property
    def std(self) -> float:
        return statistics.stdev(self.folds) if len(self.folds) > 1 else math.nan

    def to_dict(self) -> dict[str, Any]:
        values = {"mean": self.mean, "low": self.low, "high": self.high}
        spread = {"std": self.std, "min": min(self.folds), "max": max(self.folds)}
        what = {"name": self.measure.name, "unit": self.measure.unit}
        return (
            what | {key: _finite(value) for key, value in values.items()} | {"over_folds": spread, "folds": self.folds}
        )

    def __str__(self) -> str:
        measure = self.measure
        return (
            f"{measure.name} {self.mean:.4g} {measure.unit}, 95 % interval {self.low:.4g} to {self.high:.4g}; "
            f"over folds {statistics.fmean(self.folds):.4g} with standard deviation {self.std:.2g}, "
            f"from {min(self.folds):.4g} to {max(self.folds):.4g}"
        )


@dataclass(frozen=True)
class Result:
    """What all folds together found."""

    plan: Plan
    items: Sequence[Record]  # every item once, in the order of the rows
    dropped: Counter[str]  # why rows are in no fold's predictions -> how many
    averages: Sequence[Average]

    def to_dict(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "folds": plan.num_folds,
            "by": plan.by,
            "groups": plan.num_groups,
            "rows": plan.num_rows,
            "items": len(self.items),
            "dropped": dict(self.dropped),
            "measures": [average.to_dict() for average in self.averages],
        }


def collect(plan: Plan) -> Result:
    """Gather the predictions of all folds, and write them to the plan's folder with their averages."""
    lines = [json.loads(line) for fold in range(1, plan.num_folds + 1) for line in _lines(plan, fold)]
    items = sorted((line for line in lines if "dropped" not in line), key=_order)
    never_used = [record for record in read_records(plan.data) if "dropped" in record]
    dropped = sorted([line for line in lines if "dropped" in line] + never_used, key=_order)
    items = [line | _signed(line) for line in items]
    for name, records in ((PREDICTIONS, items), (DROPPED, dropped)):
        write_bytes(plan.folder / name, b"".join(map(row_line, records)), FREE_DIR)
    reasons = Counter(str(line["dropped"]) for line in dropped)
    averages = [_average(measure, items, plan.num_folds) for measure in measures_of(plan)]
    result = Result(plan, items, reasons, averages)
    write_json(plan.folder / RESULT, result.to_dict(), FREE_DIR)
    return result


def _average(measure: Measure, items: Sequence[Record], num_folds: int) -> Average:
    def mean_of(chosen: Sequence[Record]) -> tuple[float, float, float]:
        weights = [1.0 if measure.weight is None else float(item[measure.weight]) for item in chosen]
        mean = clustered_proportion if measure.is_share else clustered_mean
        return mean([item[measure.key] for item in chosen], weights, [item["group"] for item in chosen])

    by_fold = [mean_of([item for item in items if item["fold"] == fold])[0] for fold in range(1, num_folds + 1)]
    return Average(measure, *mean_of(items), by_fold=by_fold)


def _signed(line: Record) -> dict[str, float]:
    return {"signed_reward": line["reward"] if line["desirable"] else -line["reward"]} if "reward" in line else {}


def _order(record: Record) -> tuple[int, int, bool]:
    return record["row"], record.get("pair", 0), not record.get("desirable", True)


def _lines(plan: Plan, fold: int) -> Iterator[str]:
    with plan.predictions_path(fold).open(encoding="utf-8") as file:
        yield from file


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
