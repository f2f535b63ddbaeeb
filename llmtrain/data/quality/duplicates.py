"""Items that repeat others: word for word, of all that was read; nearly, of the sample, by MinHash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmtrain.data.quality.items import PROMPT, Item
from llmtrain.data.quality.sample import Reading, Sample, iter_all
from llmtrain.data.sources.near_duplicates import SHINGLE_WORDS, NearDuplicates
from llmtrain.data.sources.ngrams import WORD
from llmtrain.data.sources.text import Document

NEAR = 0.8
"""Similarity from which two texts are nearly the same; what `data.clean.near_dedup` is usually set to."""
MOST_SHOWN = 5
MOST_PLACES = 4


@dataclass(frozen=True)
class Repeated:
    """A text that several items have."""

    text: str
    count: int
    places: Sequence[str]  # the first of them, with file:line


@dataclass(frozen=True)
class ExactDuplicates:
    """Items that are equal to an earlier one, of all that were read."""

    num_items: int
    num_repeats: int
    repeated_bytes: int
    num_texts: int  # texts that occur more than once
    most: Sequence[Repeated]


@dataclass(frozen=True)
class Similar:
    """An item and an earlier one that is nearly the same."""

    earlier: Item
    later: Item
    similarity: float  # exact Jaccard similarity of their word 5-grams


@dataclass(frozen=True)
class NearDuplicatesFound:
    """Items of the sample that are nearly the same as an earlier one; not those equal to one, nor pairs "
    "of one prompt."""

    num_items: int
    num_similar: int
    num_like_one: int  # of these, those that are like the same one: texts of a template are
    num_short: int  # items with too few words to be compared
    by_source: Sequence[int]
    most: Sequence[Similar]


def exact_duplicates(sample: Sample, readings: Sequence[Reading]) -> ExactDuplicates:
    """What is repeated word for word; the texts of the most frequent are read again."""
    values, first, counts = np.unique(sample.digests, return_index=True, return_counts=True)
    repeated = counts > 1
    sizes = sample.sizes[first[repeated]]
    extra = counts[repeated] - 1
    order = np.argsort(-counts[repeated], kind="stable")[:MOST_SHOWN]
    wanted = dict(zip(values[repeated][order].tolist(), counts[repeated][order].tolist(), strict=True))
    return ExactDuplicates(
        num_items=sample.num_items,
        num_repeats=int(extra.sum()),
        repeated_bytes=int((sizes * extra.astype(np.uint64)).sum()),
        num_texts=int(repeated.sum()),
        most=_located(wanted, readings) if wanted else [],
    )


def _located(wanted: dict[int, int], readings: Sequence[Reading]) -> list[Repeated]:
    """Where the texts of some digests are, and the first few places of each."""
    texts: dict[int, str] = {}
    places: dict[int, list[str]] = {digest: [] for digest in wanted}
    missing = sum(min(count, MOST_PLACES) for count in wanted.values())
    for item in iter_all(readings):
        found = places.get(item.digest)
        if found is not None and len(found) < MOST_PLACES:
            texts.setdefault(item.digest, item.text)
            found.append(item.where)
            missing -= 1
            if not missing:
                break
    return [Repeated(texts[digest], count, places[digest]) for digest, count in wanted.items() if digest in texts]


def near_duplicates(sample: Sample, threshold: float, cache_dir: str | None = None) -> NearDuplicatesFound:
    """What is nearly repeated: MinHash finds candidates by an estimate, and their texts are compared.

    Raises ValueError if `rensa` is missing.
    """
    index = NearDuplicates(threshold, cache_dir)
    entered: list[Item] = []
    seen: set[int] = set()
    found: list[tuple[Item, Item]] = []
    by_source = Counter[int]()
    num_short = 0
    for item in sample.items:
        if item.digest in seen:
            continue
        seen.add(item.digest)
        number = index.earlier(Document(item.text, item.where, item.num_bytes))
        if number is not None and (
            _has_the_prompt_of(entered[number], item) or jaccard(entered[number].text, item.text) < threshold
        ):
            continue
        if number is not None:
            found.append((entered[number], item))
            by_source[item.source] += 1
        elif index.num_entered > len(entered):
            entered.append(item)
        else:
            num_short += 1
    return NearDuplicatesFound(
        num_items=len(sample.items),
        num_similar=len(found),
        num_like_one=max(Counter(id(earlier) for earlier, _ in found).values(), default=0),
        num_short=num_short,
        by_source=[by_source[number] for number in range(len(sample.sources))],
        most=[Similar(earlier, later, jaccard(earlier.text, later.text)) for earlier, later in _spread(found)],
    )


def _has_the_prompt_of(earlier: Item, later: Item) -> bool:
    """Whether two pairs compare answers to one prompt, which are alike for that: repeated prompts are counted as
    such."""
    prompt = later.part(PROMPT)
    return bool(prompt) and prompt == earlier.part(PROMPT)


def _spread(found: Sequence[tuple[Item, Item]]) -> list[tuple[Item, Item]]:
    """A few of the pairs, each with another earlier item as long as there are some, evenly over the data."""
    distinct = list({id(earlier): (earlier, later) for earlier, later in reversed(found)}.values())[::-1]
    chosen = distinct if len(distinct) >= MOST_SHOWN else list(found)
    places = np.linspace(0, len(chosen) - 1, min(MOST_SHOWN, len(chosen))).round().astype(int)
    return [chosen[place] for place in dict.fromkeys(places.tolist())]


def jaccard(one: str, other: str) -> float:
    """The shared share of two texts' sets of word 5-grams."""
    first, second = (_shingles(text) for text in (one, other))
    return len(first & second) / max(1, len(first | second))


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}
