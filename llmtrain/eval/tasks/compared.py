"""Two evaluations -> what of their difference is more than noise, measure by measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from llmtrain.statistics.paired import LEVEL, Paired, Sums, Verdict, holm, paired, verdict

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


def compare(first: Evaluation, second: Evaluation, *, common: bool, num_pairs: int = 1) -> list[Compared]:
    """The measures that both evaluations have, on the same items.

    `common`: if their items differ, those that both have. `num_pairs`: how many pairs of models are looked at, of
    which this is one; each gets its share of the level (Bonferroni), which Holm's correction splits.

    Raises ValueError, saying what differs, if there is no task, measure or item that both have, or if items differ
    otherwise.
    """
    if not (shared := [name for name in first.tasks if name in second.tasks]):
        raise ValueError(f"no task is in both: {_listed(first.tasks)} and {_listed(second.tasks)}")
    asked: list[tuple[str, Measure, list[ItemResult], list[ItemResult]]] = []
    for name in shared:
        one, other = first.tasks[name], second.tasks[name]
        _require_same_settings(one, other)
        pairs = _paired_items(one, other, common=common)
        of_first, of_second = ([pair[i] for pair in pairs] for i in (0, 1))
        asked += [
            (name, measure, of_first, of_second)
            for measure in _comparable(first, second, one, other)
            if values_of(of_first, measure)  # else none of the items in common is of this part
        ]
    differences = [
        paired(
            *(Sums.of(values_of(of, measure), weights_of(of, measure)) for of in sides),
            is_share=measure.unit == "share",
            clusters=clusters_of(sides[0], measure),
            ideal=measure.ideal,
            level=LEVEL / len(asked) / num_pairs,  # the strictest that Holm's correction asks of any
        )
        for _, measure, *sides in asked
    ]
    corrected = [min(1.0, num_pairs * p) for p in holm([difference.p_value for difference in differences])]
    found = []
    for (name, measure, *sides), difference, p_value in zip(asked, differences, corrected, strict=True):
        one_value, other_value = (estimate(of, measure) for of in sides)
        said = _verdict(measure, one_value.value, other_value.value, p_value)
        found.append(Compared(name, measure, one_value, other_value, difference, p_value, said))
    return found


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


def sentences(found: Sequence[Compared], name: str, num_pairs: int = 1) -> list[str]:
    """What follows, in words; `name`: of the second of the two."""
    lines = []
    for each in found:
        pair, what = each.paired, f"{each.task} {each.measure.name}"
        if (ideal := each.measure.ideal) is not None:
            lines.append(f"{what}: {_against_ideal(each, ideal, name)}")
            continue
        if each.verdict != "not distinguishable":
            lines.append(f"{what}: {name} is {each.verdict} by {abs(pair.difference):.4f}")
        else:
            lines.append(f"{what}: not distinguishable{_power(pair)}")
    if (num_compared := len(found) * num_pairs) > 1:
        lines.append(
            f"p-values are corrected for {num_compared} comparisons (Holm), and so are the items needed; intervals are "
            "of each measure by itself"
        )
    return lines


def _power(pair: Paired) -> str:
    """What the items of a comparison can find, and how many it would need."""
    if math.isnan(pair.smallest):
        return f": from {pair.num_items:,} item no difference can be known"
    if not pair.smallest:
        return f": no difference on any of {pair.num_items:,} items"
    finds = f" on {pair.num_items:,} items, which find a difference of {pair.smallest:.4f} four times in five"
    if pair.num_needed is None:
        return f"{finds}; the two come out equal"
    return f"{finds}; one of {abs(pair.difference):.4f} needs about {pair.num_needed:,} items"


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
