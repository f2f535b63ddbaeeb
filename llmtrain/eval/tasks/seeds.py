"""Several runs of one recipe that differ in their seed: their mean, and whether it is more than what seeds differ by.

The comparison of the means is about these very runs, on any items. Whether other seeds would differ the same way is
another question: that of Welch's t-test (1947), whose units are the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from llmtrain.eval.tasks.compared import Compared
from llmtrain.eval.tasks.results import Evaluation, ItemResult, estimate
from llmtrain.statistics.paired import LEVEL


def seeds_together(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Runs that differ in their seed as one: each item's values are the means over the runs.

    Raises ValueError if they were not measured on the same items.
    """
    first, *others = evaluations
    if not others:
        return first
    tasks = {}
    for name, result in first.tasks.items():
        same = [other.tasks[name] for other in others if name in other.tasks]
        by_item = [{item.item: item for item in other.items} for other in same]
        keys = {item.item for item in result.items}
        if len(same) < len(others) or any(set(items) != keys for items in by_item):
            raise ValueError(f"{name}: the runs of one side were not measured on the same items")
        items = []
        for item in result.items:
            all_values = [item.values, *(items_of[item.item].values for items_of in by_item)]
            shared = [key for key in item.values if all(key in values for values in all_values)]
            means = {key: sum(values[key] for values in all_values) / len(all_values) for key in shared}
            items.append(ItemResult(name, item.item, item.where, means, cluster=item.cluster))
        measures = [replace(each, unit="mean") if each.unit == "share" else each for each in result.measures]
        tasks[name] = replace(result, measures=measures, items=items)
    return Evaluation(first.model, tasks)


def seed_sentences(
    found: Sequence[Compared], first: Sequence[Evaluation], second: Sequence[Evaluation], *, name: str
) -> list[str]:
    """What each run has, and whether that decides more than these runs; none of single runs."""
    if len(first) < 2 or len(second) < 2:
        return []
    lines = []
    for each in found:
        one, other = _by_run(each, first), _by_run(each, second)
        shown = " against ".join(", ".join(f"{value:.4f}" for value in side) for side in (one, other))
        lines.append(f"{each.task} {each.measure.name}, by seed: {shown}: {_of_new_seeds(one, other, name)}")
    return lines


def _by_run(each: Compared, runs: Sequence[Evaluation]) -> list[float]:
    """The measure of each run, on the items that it has."""
    return [estimate(run.tasks[each.task].items, each.measure).value for run in runs]


def _of_new_seeds(first: Sequence[float], second: Sequence[float], name: str) -> str:
    """Whether runs of other seeds would differ too."""
    from scipy.stats import ttest_ind

    if not math.isfinite(sum(first) + sum(second)):
        return "not known of other seeds"
    if len({*first}) == 1 and len({*second}) == 1:
        return "the seeds of a side do not differ, so nothing is known of others"
    tested = ttest_ind(second, first, equal_var=False)
    interval = tested.confidence_interval(1 - LEVEL)
    word = "not distinguishable" if interval.low <= 0 <= interval.high else "higher" if interval.low > 0 else "lower"
    return (
        f"of other seeds {name} is {word}, {interval.low:+.4f} to {interval.high:+.4f} (95 % interval, Welch's t-test "
        "of the runs)"
    )
