"""Two evaluations -> what of their difference is more than noise, measure by measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llmtrain.eval.tasks.results import (
    Estimate,
    Evaluation,
    ItemResult,
    Measure,
    TaskResult,
    clusters_of,
    estimate,
    values_of,
    weights_of,
)
from llmtrain.statistics.paired import Paired, Sums, Verdict, holm, paired, verdict

PER_TOKEN = "tokens"
"""Weight of measures that another tokenizer changes without the model being another."""


@dataclass(frozen=True)
class Compared:
    """One measure of one task, of both models."""

    task: str
    measure: Measure
    first: Estimate
    second: Estimate
    paired: Paired
    p_value: float  # corrected for all that are looked at
    verdict: Verdict  # of the second model


def compare(first: Evaluation, second: Evaluation, *, common: bool) -> list[Compared]:
    """The measures that both evaluations have, on the same items.

    `common`: if their items differ, those that both have. Raises ValueError, saying what differs, if there is no task,
    measure or item that both have, or if items differ otherwise.
    """
    if not (shared := [name for name in first.tasks if name in second.tasks]):
        raise ValueError(f"no task is in both: {_listed(first.tasks)} and {_listed(second.tasks)}")
    found: list[tuple[str, Measure, Estimate, Estimate, Paired]] = []
    for name in shared:
        one, other = first.tasks[name], second.tasks[name]
        _require_same_settings(one, other)
        pairs = _paired_items(one, other, common=common)
        of_first, of_second = ([pair[i] for pair in pairs] for i in (0, 1))
        for measure in _comparable(first, second, one, other):
            sums = [Sums.of(values_of(of, measure), weights_of(of, measure)) for of in (of_first, of_second)]
            if not len(sums[0].values):
                continue  # none of the items in common is of this part
            difference = paired(
                *sums,
                is_share=measure.unit == "share",
                clusters=clusters_of(of_first, measure),
                ideal=measure.ideal,
            )
            found.append((name, measure, estimate(of_first, measure), estimate(of_second, measure), difference))
    corrected = holm([difference.p_value for *_, difference in found])
    return [
        Compared(*each, p_value, _verdict(each[1], each[2].value, each[3].value, p_value))
        for each, p_value in zip(found, corrected, strict=True)
    ]


def _verdict(measure: Measure, first: float, second: float, p_value: float) -> Verdict:
    """Of the second model; with an ideal value, better is nearer to it."""
    if measure.ideal is None:
        return verdict(second - first, p_value, higher_is_better=measure.higher_is_better)
    farther = abs(second - measure.ideal) - abs(first - measure.ideal)
    return verdict(farther, p_value, higher_is_better=False)


def left_out(first: Evaluation, second: Evaluation) -> list[str]:
    """Why measures and tasks are not compared, a line each."""
    lines = [f"{name} is in one of the two only" for name in sorted(first.tasks.keys() ^ second.tasks.keys())]
    if first.model["tokenizer"] != second.model["tokenizer"]:
        lines.append("their tokenizers differ, so measures per token are left out")
    return lines


def sentences(found: Sequence[Compared], name: str) -> list[str]:
    """What follows, in words; `name`: of the second of the two."""
    lines = []
    for each in found:
        pair, what = each.paired, f"{each.task} {each.measure.name}"
        if (ideal := each.measure.ideal) is not None:
            lines.append(f"{what}: {_against_ideal(each, ideal, name)}")
            continue
        if each.verdict != "not distinguishable":
            lines.append(f"{what}: {name} is {each.verdict} by {abs(pair.difference):.4f}")
        elif pair.num_needed is None or math.isnan(pair.smallest):
            lines.append(f"{what}: not distinguishable: no difference on {pair.num_items:,} items")
        else:
            lines.append(
                f"{what}: not distinguishable on {pair.num_items:,} items, which find a difference of "
                f"{pair.smallest:.4f} four times in five; one of {abs(pair.difference):.4f} needs about "
                f"{pair.num_needed:,} items"
            )
    if len(found) > 1:
        lines.append(f"p-values are corrected for {len(found)} comparisons (Holm)")
    return lines


def _against_ideal(each: Compared, ideal: float, name: str) -> str:
    """Which of the two is nearer to the best value."""
    pair = each.paired
    if each.verdict != "not distinguishable":
        first, second = (abs(found.value - ideal) for found in (each.first, each.second))
        return f"{name} is {each.verdict}: {second:.4f} from the ideal {ideal:g}, the other is {first:.4f} from it"
    differ = "" if math.isnan(pair.low) or pair.low <= 0 <= pair.high else ", though they may differ"
    return f"which is nearer to the ideal {ideal:g} is not distinguishable on {pair.num_items:,} items{differ}"


def _comparable(first: Evaluation, second: Evaluation, one: TaskResult, other: TaskResult) -> list[Measure]:
    """The measures of a task that can be compared. Raises ValueError if there is none."""
    names = {measure.name: measure for measure in other.measures}
    both = [measure for measure in one.measures if measure.name in names]
    # Scores that happen to be 0 and 1 for one model only are means for both.
    both = [names[each.name] if names[each.name].unit == "mean" else each for each in both]
    same_tokens = first.model["tokenizer"] == second.model["tokenizer"]
    found = [measure for measure in both if same_tokens or measure.weight != PER_TOKEN]
    if not found:
        why = "no measure is in both" if not both else "their tokenizers differ, and all measures are per token"
        raise ValueError(f"{one.task}: {why}")
    return found


def _paired_items(one: TaskResult, other: TaskResult, *, common: bool) -> list[tuple[ItemResult, ItemResult]]:
    """The items of both. Raises ValueError if they differ and not `common`, or there are none."""
    second = {item.item: item for item in other.items}
    pairs = [(item, second[item.item]) for item in one.items if item.item in second]
    if not pairs:
        raise ValueError(f"{one.task}: the two have no item in common ({len(one.items):,} and {len(other.items):,})")
    only_first, only_second = len(one.items) - len(pairs), len(other.items) - len(pairs)
    if (only_first or only_second) and not common:
        raise ValueError(
            f"{one.task}: the items differ: {only_first:,} are in the first only, {only_second:,} in the second only; "
            f"--common compares the {len(pairs):,} that both have"
        )
    return pairs


def _require_same_settings(one: TaskResult, other: TaskResult) -> None:
    for name in sorted((one.facts.keys() | other.facts.keys()) - {"data"}):
        first, second = one.facts.get(name), other.facts.get(name)
        if first != second:
            raise ValueError(
                f"{one.task}: measured in two ways: {name} is {first} in the first, {second} in the second"
            )


def _listed(tasks: Mapping[str, TaskResult]) -> str:
    return ", ".join(tasks) or "none"


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
            means = {key: sum(values[key] for values in all_values) / len(all_values) for key in item.values}
            items.append(ItemResult(name, item.item, item.where, means, cluster=item.cluster))
        measures = [replace(each, unit="mean") if each.unit == "share" else each for each in result.measures]
        tasks[name] = replace(result, measures=measures, items=items)
    return Evaluation(first.model, tasks)
