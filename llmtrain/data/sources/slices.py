"""A slice of a source, such as `0%:90%`, counted over the whole source: slices that meet give everything once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from typing import TypeVar

Slice = tuple[Fraction, Fraction]
WHOLE: Slice = (Fraction(0), Fraction(1))
Item = TypeVar("Item")


def parse_slice(text: str | None) -> Slice:
    """`0%:90%` -> exact fractions."""
    if text is None:
        return WHOLE
    low, high = (Fraction(bound.removesuffix("%")) / 100 for bound in text.split(":"))
    if not low < high <= 1:
        raise ValueError(f"slice {text!r} is not a range within 0%:100%")
    return low, high


def bounds(total: int, part: Slice) -> tuple[int, int]:
    """[start, end) of a part of `total` things."""
    return int(total * part[0]), int(total * part[1])


def shares(counts: Sequence[int], part: Slice) -> list[tuple[int, int]]:
    """[start, end) within each of several things that follow one another, of a part of them all."""
    start, end = bounds(sum(counts), part)
    found: list[tuple[int, int]] = []
    for count in counts:
        found.append((min(max(start, 0), count), min(max(end, 0), count)))
        start, end = start - count, end - count
    return found


def within(read: Callable[[], Iterator[Item]], part: Slice) -> Iterator[Item]:
    """What `read()` gives, or a part of it, for which it is counted first."""
    if part == WHOLE:
        yield from read()
        return
    start, end = bounds(sum(1 for _ in read()), part)
    yield from islice(read(), start, end)
