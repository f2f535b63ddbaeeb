"""Texts that repeat themselves: the rules of Gopher (Rae et al. 2021, table A1), each with its limit.

Lines: the share of lines that repeat an earlier one of the text. `top n-gram`: the share of a text's letters that its
most frequent n words in a row cover. `repeated n-grams`: the share that is covered by n words in a row which were there
before; overlaps count once, and a first occurrence does not. Words are those of `sources.ngrams`, without punctuation.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmtrain.data.quality.items import REJECTED, Item
from llmtrain.data.sources.clean import line_repeat_fraction
from llmtrain.data.sources.ngrams import WORD, WordHashes, join_hashes, word_hashes
from llmtrain.data.sources.text import Document
from llmtrain.system.typing import Array

FEWEST_WORDS = 50
"""A text with fewer words repeats some by chance, and is not measured; Gopher drops those of fewer."""
LINES = "repeated lines"
TOP = {2: 0.20, 3: 0.18, 4: 0.16}
"""Words of a top n-gram -> its limit."""
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Words of repeated n-grams -> their limit."""
LIMITS: Mapping[str, float] = {
    LINES: 0.30,
    **{f"top {n}-gram": limit for n, limit in TOP.items()},
    **{f"repeated {n}-grams": limit for n, limit in REPEATED.items()},
}
FAR = 2.0
"""Short texts exceed a limit by chance; so many times, hardly."""
MOST_SHOWN = 5
PHRASE_WORDS = 5


@dataclass(frozen=True)
class Repetitive:
    """A text beyond a limit."""

    item: Item
    text: str  # of its texts the one that repeats itself
    rule: str  # by which it exceeds its limit most
    share: float
    phrase: str  # what it repeats most, in up to 5 words
    count: int  # how often


@dataclass(frozen=True)
class Repetition:
    """How much the sample's texts repeat themselves."""

    num_measured: int
    num_short: int
    over: Mapping[str, int]  # rule -> texts beyond its limit
    num_over: int  # beyond any
    num_far_over: int  # beyond any by more than `FAR` times
    by_source: Sequence[int]
    shares: Sequence[float]  # of each measured text, the share of its letters in repeated 5-grams
    most: Sequence[Repetitive]


def repetition(items: Sequence[Item], num_sources: int) -> Repetition:
    """Measure each text of enough words; of a chat each message, of a pair all but the rejected answer."""
    words = WordHashes()
    over: Counter[str] = Counter()
    by_source: Counter[int] = Counter()
    shares: list[float] = []
    worst: list[tuple[float, int, str, float]] = []
    num_far_over = 0
    for number, item in enumerate(items):
        parts = [part.text for part in item.parts if part.name != REJECTED]
        each = [found for text in parts if (found := repetition_of(text, words))]
        if not each:
            continue
        found = {rule: max(one[rule] for one in each) for rule in LIMITS}
        shares.append(found["repeated 5-grams"])
        beyond = {rule: found[rule] / LIMITS[rule] for rule in LIMITS if found[rule] > LIMITS[rule]}
        if beyond:
            over.update(beyond.keys())
            by_source[item.source] += 1
            rule = max(beyond, key=lambda name: beyond[name])
            num_far_over += beyond[rule] > FAR
            entry = (beyond[rule], -number, rule, found[rule])
            heapq.heappushpop(worst, entry) if len(worst) >= MOST_SHOWN else heapq.heappush(worst, entry)
    most = []
    for _, number, rule, share in sorted(worst, reverse=True):
        item = items[-number]
        text = max(
            (part.text for part in item.parts if part.name != REJECTED),
            key=lambda text: repetition_of(text, words).get(rule, 0.0),
        )
        most.append(Repetitive(item, text, rule, share, *_most_repeated(text, rule)))
    return Repetition(
        num_measured=len(shares),
        num_short=len(items) - len(shares),
        over={rule: over[rule] for rule in LIMITS},
        num_over=sum(by_source.values()),
        num_far_over=num_far_over,
        by_source=[by_source[number] for number in range(num_sources)],
        shares=shares,
        most=most,
    )


def repetition_of(text: str, words: WordHashes) -> dict[str, float]:
    """Each rule's share of a text; {} if it has too few words."""
    run = word_hashes(text, words)
    if len(run) < FEWEST_WORDS:
        return {}
    lengths = np.array([len(word) for word in WORD.findall(text.lower())])
    shares = {LINES: line_repeat_fraction(Document(text, "", 0))}
    for n in (*TOP, *REPEATED):
        hashes = join_hashes(run, n)
        _, first, inverse, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
        if n in TOP:
            top = int(counts.argmax())
            places = np.flatnonzero(inverse == top) if counts[top] > 1 else np.zeros(0, dtype=np.int64)
            shares[f"top {n}-gram"] = _covered(places, n, lengths)
        else:
            places = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
            shares[f"repeated {n}-grams"] = _covered(places, n, lengths)
    return shares


def _covered(places: Array, n: int, lengths: Array) -> float:
    """The share of letters that n-grams at some places cover."""
    edges = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.add.at(edges, places, 1)
    np.add.at(edges, places + n, -1)
    return float(lengths[np.cumsum(edges[:-1]) > 0].sum() / lengths.sum())


def _most_repeated(text: str, rule: str) -> tuple[str, int]:
    """The line, or the words in a row, that occur most often, and how often."""
    if rule == LINES:
        lines = Counter(line.strip() for line in text.split("\n") if line.strip())
        return lines.most_common(1)[0]
    n = min(PHRASE_WORDS, next(int(part.partition("-")[0]) for part in rule.split() if part[0].isdigit()))
    found = WORD.findall(text.lower())
    grams = Counter(tuple(found[i : i + n]) for i in range(len(found) - n + 1))
    gram, count = grams.most_common(1)[0]
    return " ".join(gram), count
