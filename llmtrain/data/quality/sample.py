"""Every row of some sources is read once: counted, measured in bytes, hashed; some are kept for the other measures.

A row is kept if its key, 64 bits of (seed, number of the row), is among the smallest: a sample without replacement that
depends on neither the order of the keys nor the number of rows (bottom-k sampling; Cohen and Kaplan 2007).
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from llmtrain.config.data import Source
from llmtrain.data.quality.items import Item, Lost, read_items
from llmtrain.data.random_bits import GOLDEN, mixed
from llmtrain.data.survey import Use
from llmtrain.system.typing import Array

SAMPLE_CHARS = 32_000_000
"""Characters that a sample holds at most; fewer rows are kept if theirs are more."""


@dataclass(frozen=True)
class Reading:
    """A source, and how its rows are read."""

    source: Source
    use: Use | None  # None: in no format that is known
    has_rows: bool  # else it is text files


@dataclass
class SourceTotals:
    """All of a source, sampled or not."""

    path: str
    use: Use | None
    has_rows: bool
    num_items: int = 0
    num_bytes: int = 0
    longest: tuple[int, str] = (0, "")  # bytes, and where it is
    lost: Counter[str] = field(default_factory=Counter)  # why -> rows or parts of them
    first_lost: dict[str, str] = field(default_factory=dict)  # why -> the first, with file:line


@dataclass(frozen=True)
class Sample:
    """What was read, and the items that are kept, in the order in which they were read."""

    items: Sequence[Item]
    numbers: Sequence[int]  # of each, among all items
    sources: Sequence[SourceTotals]
    digests: Array  # (all items,) uint64
    sizes: Array  # (all items,) uint64, bytes
    limit: int
    seed: int

    @property
    def num_items(self) -> int:
        """All that there are."""
        return len(self.digests)

    @property
    def is_whole(self) -> bool:
        """Whether every item is kept."""
        return len(self.items) == self.num_items

    @property
    def num_cut(self) -> int:
        """Items of which only the beginning is kept."""
        return sum(item.is_cut for item in self.items)

    @property
    def num_bytes(self) -> int:
        """Of all items."""
        return sum(source.num_bytes for source in self.sources)


def read_sample(
    readings: Sequence[Reading], limit: int, seed: int, progress: Callable[[int], None] = lambda count: None
) -> Sample:
    """Read all sources and keep up to `limit` items. Takes 16 bytes of memory for each item besides those kept.

    Raises ValueError for a source that cannot be read, and if nothing in any of them can be measured.
    """
    totals = [SourceTotals(each.source.path, each.use, each.has_rows) for each in readings]
    digests, sizes = array("Q"), array("Q")
    kept: list[tuple[int, int, Item]] = []  # a heap: minus the key, the number
    num_chars = 0
    for item in _all(readings, totals):
        number = len(digests)
        digests.append(item.digest)
        sizes.append(item.num_bytes)
        key = mixed((seed + 1) * GOLDEN + mixed(number))
        if len(kept) < limit or -key > kept[0][0]:
            heapq.heappush(kept, (-key, number, item))
            num_chars += len(item.text)
        while kept and (len(kept) > limit or (num_chars > SAMPLE_CHARS and len(kept) > 1)):
            num_chars -= len(heapq.heappop(kept)[2].text)
        progress(number + 1)
    if not digests:
        lost = next((line for source in totals for line in source.first_lost.values()), "nothing was read")
        raise ValueError(f"{readings[0].source.path}: holds no text to measure; {lost}")
    chosen = sorted((number, item) for _, number, item in kept)
    return Sample(
        items=[item for _, item in chosen],
        numbers=[number for number, _ in chosen],
        sources=totals,
        digests=np.frombuffer(digests, dtype=np.uint64),
        sizes=np.frombuffer(sizes, dtype=np.uint64),
        limit=limit,
        seed=seed,
    )


def iter_all(readings: Sequence[Reading]) -> Iterator[Item]:
    """Every item of all sources again, in the same order."""
    unused = [SourceTotals("", None, False) for _ in readings]
    return _all(readings, unused)


def _all(readings: Sequence[Reading], totals: Sequence[SourceTotals]) -> Iterator[Item]:
    return chain.from_iterable(_of_source(each, number, totals[number]) for number, each in enumerate(readings))


def _of_source(reading: Reading, number: int, totals: SourceTotals) -> Iterator[Item]:
    for found in read_items(reading.source, number, reading.use, reading.has_rows):
        if isinstance(found, Lost):
            totals.lost[found.reason] += found.num_rows
            totals.first_lost.setdefault(found.reason, found.message)
        elif not found.text.strip():
            totals.lost["empty"] += 1
            totals.first_lost.setdefault("empty", found.where)
        else:
            totals.num_items += 1
            totals.num_bytes += found.num_bytes
            totals.longest = max(totals.longest, (found.num_bytes, found.where))
            yield found
