"""What preferences and labels hold besides quality: length, position, repeated prompts, contradictions.

A model learns whatever separates chosen from rejected answers. If that is length, it learns length.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmtrain.data.quality.items import CHOSEN, PROMPT, REJECTED, Item
from llmtrain.statistics.intervals import clustered_proportion, wilson_interval

MOST_SHOWN = 3


@dataclass(frozen=True)
class Share:
    """A part of some comparisons, with its 95 % interval."""

    count: int
    of: int
    bounds: tuple[float, float] | None = None  # of the interval, if the comparisons are not independent

    @classmethod
    def of_groups(cls, outcomes: Sequence[tuple[bool, str]]) -> Share:
        """Of comparisons of which those of one group, such as a prompt, are not independent."""
        values, groups = [float(each) for each, _ in outcomes], [group for _, group in outcomes]
        found = cls(int(sum(values)), len(values))
        if len(set(groups)) in (0, 1, len(groups)):
            return found
        _, low, high = clustered_proportion(values, [1.0] * len(values), groups)
        return cls(found.count, found.of, (low, high))

    @property
    def rest(self) -> Share:
        """The other part."""
        bounds = None if self.bounds is None else (1 - self.bounds[1], 1 - self.bounds[0])
        return Share(self.of - self.count, self.of, bounds)

    @property
    def value(self) -> float:
        return self.count / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if self.bounds is not None:
            return self.bounds
        return wilson_interval(self.value, self.of) if self.of else (float("nan"), float("nan"))


@dataclass(frozen=True)
class Pairs:
    """Pairs of a better and a worse answer."""

    num_pairs: int
    longer: Share  # the chosen answer is longer; ties are left out
    first: Share  # the chosen answer is listed first; of 0: the rows name them, or do not order a list
    differences: Sequence[float]  # log2 of the chosen answer's characters over the rejected one's
    num_prompts: int
    most_repeated: Sequence[tuple[str, int]]  # prompts, and their pairs
    num_identical: int  # pairs of equal answers, which were left out
    contradictions: Sequence[tuple[Item, Item]]  # one prompt, the same answers, the other way round
    num_contradictions: int
    num_blank: int  # pairs with an empty answer


@dataclass(frozen=True)
class Labels:
    """Labelled answers."""

    desirable: Share
    lengths: dict[str, Sequence[float]]  # desirable, undesirable -> characters of answers
    num_prompts: int
    most_repeated: Sequence[tuple[str, int]]
    num_both: int  # answers that are labelled both ways


def pairs(items: Sequence[Item], num_identical: int) -> Pairs:
    """The balance of pairs."""
    num_blank = num_contradictions = 0
    longer: list[tuple[bool, str]] = []
    first: list[tuple[bool, str]] = []
    differences: list[float] = []
    prompts: Counter[str] = Counter()
    seen: dict[tuple[str, str, str], Item] = {}
    contradictions: list[tuple[Item, Item]] = []
    for item in items:
        prompt, chosen, rejected = (item.part(name) for name in (PROMPT, CHOSEN, REJECTED))
        prompts[prompt] += 1
        sizes = len(chosen), len(rejected)
        longer += [(sizes[0] > sizes[1], prompt)] if sizes[0] != sizes[1] else []
        num_blank += not (chosen.strip() and rejected.strip())
        differences.append(float(np.log2(max(1, sizes[0]) / max(1, sizes[1]))))
        if item.first_is_better is not None:
            first.append((item.first_is_better, prompt))
        seen[(prompt, chosen, rejected)] = item
        if (other := seen.get((prompt, rejected, chosen))) is not None and chosen != rejected:
            num_contradictions += 1
            contradictions += [(other, item)] if len(contradictions) < MOST_SHOWN else []
    return Pairs(
        num_pairs=len(items),
        longer=Share.of_groups(longer),
        first=Share.of_groups(first),
        differences=differences,
        num_prompts=len(prompts),
        most_repeated=_repeated(prompts),
        num_identical=num_identical,
        contradictions=contradictions,
        num_contradictions=num_contradictions,
        num_blank=num_blank,
    )


def labels(items: Sequence[Item]) -> Labels:
    """The balance of labelled answers."""
    desirable = 0
    lengths: dict[str, list[float]] = {"desirable": [], "undesirable": []}
    prompts: Counter[str] = Counter()
    answers: defaultdict[tuple[str, str], set[bool]] = defaultdict(set)
    for item in items:
        is_good = bool(item.desirable)
        desirable += is_good
        answer = item.parts[-1].text
        lengths["desirable" if is_good else "undesirable"].append(float(len(answer)))
        prompt = "\n".join(part.text for part in item.parts[:-1])
        prompts[prompt] += 1
        answers[(prompt, answer)].add(is_good)
    return Labels(
        desirable=Share(desirable, len(items)),
        lengths=dict(lengths),
        num_prompts=len(prompts),
        most_repeated=_repeated(prompts),
        num_both=sum(len(given) > 1 for given in answers.values()),
    )


def _repeated(prompts: Counter[str]) -> list[tuple[str, int]]:
    return [(prompt, count) for prompt, count in prompts.most_common(MOST_SHOWN) if count > 1]
