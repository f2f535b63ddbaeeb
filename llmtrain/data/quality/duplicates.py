"""Items that repeat others: word for word, of all that was read; nearly, of the sample, by MinHash."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmtrain.data.quality.items import PROMPT, Item
from llmtrain.data.quality.sample import Reading, Sample, iter_all
from llmtrain.data.sources.near_duplicates import SHINGLE_WORDS, NearDuplicates
from llmtrain.data.sources.ngrams import Hashes, WordHashes, join_hashes, word_hashes
from llmtrain.data.sources.text import Document

NEAR = 0.8
"""Similarity from which two texts are nearly the same; what `data.clean.near_dedup` is usually set to."""
ONE_WORD_OF = 49
"""Of so many words one in the middle that differs leaves a similarity of `NEAR`: 40 of 50 runs of 5 words."""
ESTIMATE_ERROR = 0.1
"""Three standard errors of an estimate of 0.8 from 128 hashes."""
MOST_COMPARED = 16
"""Candidates of an item whose texts are compared: those of the highest estimates."""
MOST_ENTERED = 16
"""Of items that are like each other, those that later ones are compared with."""
MOST_PAIRS = 50
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
    """Items of the sample that are nearly the same as an earlier one, nor equal to it; not pairs of one prompt."""

    num_items: int
    num_similar: int
    num_like_one: int  # of these, those of the largest group of items like each other: texts of a template are
    num_short: int  # items with too few words to be compared
    usual: float  # similarity of two different ones drawn by chance, the median; high for rows of a template
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


@dataclass
class _Compared:
    """An item that others are compared with."""

    item: Item
    words: WordHashes
    first: Item  # of those that are like each other

    @cached_property
    def shingles(self) -> Hashes:
        """The set of its word 5-grams; most items have no candidate, and need none."""
        return _shingles(self.item.text, self.words)


def near_duplicates(sample: Sample, threshold: float, cache_dir: str | None = None) -> NearDuplicatesFound:
    """What is nearly repeated: MinHash finds candidates by an estimate, and their texts are compared.

    The estimate of a similar pair may be too low, so candidates are those from `ESTIMATE_ERROR` below the threshold on.
    Of items that are like each other only some are entered, so that copies of a template cost no more than others.
    Raises ValueError if `rensa` is missing.
    """
    index, words = NearDuplicates(max(0.0, threshold - ESTIMATE_ERROR), cache_dir), WordHashes()
    entered: list[_Compared] = []
    seen: set[int] = set()
    found: list[Similar] = []
    num_entered = Counter[int]()
    by_source = Counter[int]()
    num_short = 0
    for item in sample.items:
        if item.digest in seen:
            continue
        seen.add(item.digest)
        signature = index.signature(Document(item.text, item.where, item.num_bytes))
        if signature is None:
            num_short += 1
            continue
        new = _Compared(item, words, first=item)
        if (similar := _most_similar(new, entered, index.similar(signature), threshold)) is not None:
            earlier, similarity = similar
            new.first = earlier.first
            found.append(Similar(earlier.item, item, similarity))
            by_source[item.source] += 1
        num_entered[new.first.digest] += 1
        if num_entered[new.first.digest] <= MOST_ENTERED:
            index.enter(signature)
            entered.append(new)
    return NearDuplicatesFound(
        num_items=len(sample.items),
        num_similar=len(found),
        num_like_one=max(num_entered.values(), default=1) - 1,
        num_short=num_short,
        usual=_usual(sample),
        by_source=[by_source[number] for number in range(len(sample.sources))],
        most=_spread(found),
    )


def _most_similar(
    new: _Compared, entered: Sequence[_Compared], candidates: Iterable[tuple[int, float]], threshold: float
) -> tuple[_Compared, float] | None:
    """Of the candidates with the highest estimates the most similar one, if it reaches the threshold."""
    others = ((share, number) for number, share in candidates if not _has_the_prompt_of(entered[number].item, new.item))
    compared = (entered[number] for _, number in heapq.nlargest(MOST_COMPARED, others))
    measured = [(_shared(each.shingles, new.shingles), each) for each in compared]
    similarity, earlier = max(measured, key=lambda each: each[0], default=(-1.0, new))
    return (earlier, similarity) if similarity >= threshold else None


def _usual(sample: Sample) -> float:
    """The median similarity of two different items, drawn by chance: a file may be an altered copy of another."""
    different = list({item.digest: item for item in sample.items}.values())
    if len(different) < 2:
        return 0.0
    draw = random.Random(sample.seed)
    pairs = (draw.sample(different, 2) for _ in range(MOST_PAIRS))
    return float(np.median([jaccard(one.text, other.text) for one, other in pairs]))


def _has_the_prompt_of(earlier: Item, later: Item) -> bool:
    """Whether two pairs compare answers to one prompt, which makes them alike: repeated prompts are counted as such."""
    prompt = later.part(PROMPT)
    return bool(prompt) and prompt == earlier.part(PROMPT)


def _spread(found: Sequence[Similar]) -> list[Similar]:
    """A few of the pairs, each with another earlier item as long as there are some, evenly over the data."""
    distinct = list({pair.earlier.digest: pair for pair in reversed(found)}.values())[::-1]
    chosen = distinct if len(distinct) >= MOST_SHOWN else list(found)
    places = np.linspace(0, len(chosen) - 1, min(MOST_SHOWN, len(chosen))).round().astype(int)
    return [chosen[place] for place in dict.fromkeys(places.tolist())]


def jaccard(one: str, other: str) -> float:
    """The shared share of two texts' sets of word 5-grams."""
    words = WordHashes()
    return _shared(_shingles(one, words), _shingles(other, words))


def _shingles(text: str, words: WordHashes) -> Hashes:
    """The set of a text's word 5-grams."""
    return np.unique(join_hashes(word_hashes(text, words), SHINGLE_WORDS))


def _shared(one: Hashes, other: Hashes) -> float:
    """The Jaccard similarity of two sets."""
    num_shared = len(np.intersect1d(one, other, assume_unique=True))
    return num_shared / max(1, len(one) + len(other) - num_shared)
