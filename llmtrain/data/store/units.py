"""A build goes on from what an earlier one finished, as long as its source begins with the same items.

What is an item is the kind's own: a piece of text, a row. Items are read, cleaned and counted again; what was made of
them is not. Each point of a build is named by a digest of all items before it, so a source that was corrected, or whose
reading changed, goes on from the last point before the change, whatever the names of its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import xxhash

from llmtrain.data.ledger import SourceLedger
from llmtrain.data.store.writer import Earlier, StoreWriter
from llmtrain.protocols import Report

UNIT_BYTES = 64 << 20
"""Text after which a build makes what it has durable: what a kill may cost."""

Item = TypeVar("Item")


class Units(Generic[Item]):
    """Counts the items of a build as they are written. A context manager: an error keeps what was written before."""

    def __init__(self, writer: StoreWriter, content: Callable[[Item], bytes], report: Report) -> None:
        """`content`: all of an item that decides what is made of it."""
        self._writer, self._content, self._report = writer, content, report
        self._hasher = xxhash.xxh3_128()
        self._num_items = self._unit_bytes = 0
        self.made = SourceLedger(path="")  # the account of what became of the items

    def __enter__(self) -> Units[Item]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        begun = self._writer.progress is not None
        if begun and (kind is None or issubclass(kind, ValueError)):
            self._flush()

    def remaining(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items that no earlier build holds, in order; the writer begins where the first of them belongs.

        Items between two points are held until the second is seen to be the same: no more than a unit.
        """
        points = [(point, build, number) for build in self._writer.earlier for number, point in enumerate(build.points)]
        best: tuple[Earlier | None, int] = (None, 0)
        others: list[Earlier] = []  # builds that are found to be of other items
        hasher, held, num_read = self._hasher.copy(), list[Item](), 0
        for point, build, number in sorted(points, key=lambda each: each[0].items):
            if build in others:
                continue
            for item in islice(items, point.items - num_read):
                self._update(hasher, item)
                held.append(item)
                num_read += 1
            if num_read < point.items or hasher.hexdigest() != point.digest:
                others.append(build)
                continue
            best = build, number + 1
            self._hasher, self._num_items = hasher.copy(), num_read
            self.made = SourceLedger.from_dict(point.ledger)
            held.clear()
        if self._num_items:
            self._report(f"going on with an interrupted build, after its first {self._num_items:,} items")
        self._writer.begin(*best)
        yield from held
        yield from items

    def done(self, item: Item, num_bytes: int) -> None:
        """Count an item, of which all is written."""
        self._update(self._hasher, item)
        self._num_items += 1
        self._unit_bytes += num_bytes
        if self._unit_bytes >= UNIT_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._writer.flush(self._num_items, self._hasher.hexdigest(), self.made.to_dict())
        self._unit_bytes = 0

    def _update(self, hasher: xxhash.xxh3_128, item: Item) -> None:
        content = self._content(item)
        hasher.update(len(content).to_bytes(8, "little"))
        hasher.update(content)
