"""Documents -> packs: which tokens of a store make pack number i, where the document bounds lie.

Pretraining packs by *stream*: the documents of a store, end to end, are cut every `max_seq_len` tokens.
No token is padded, dropped or repeated, and a pack is found by arithmetic. A label may lie just past the
end of its pack, so in every epoch each token but the first of each document is predicted exactly once.

Tuning packs by *best fit*: whole documents, none cut, as many to a pack as fit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from llmtrain.batch import IGNORE_INDEX
from llmtrain.protocols import Array


class Tokens(Protocol):
    """What a token store offers to packing."""

    @property
    def tokens(self) -> Array: ...  # (num_tokens,) unsigned
    @property
    def document_offsets(self) -> Array: ...  # (num_documents + 1,) int64
    @property
    def trained(self) -> Array | None: ...  # (num_tokens,) uint8; None: every token is a target


@dataclass(frozen=True)
class Pack:
    """One pack: at most `max_seq_len` tokens."""

    input_ids: Array  # (tokens,) int64
    labels: Array  # (tokens,) int64
    segment_lengths: tuple[int, ...]


class Packing(Protocol):
    """A store cut into packs."""

    @property
    def num_packs(self) -> int: ...
    @property
    def num_segments(self) -> int: ...  # stretches of one document within one pack, over all packs
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_targets(self) -> int: ...  # tokens that an epoch trains on
    def pack(self, index: int) -> Pack: ...


@dataclass(frozen=True)
class StreamPacking:
    """The documents of a store end to end, cut every `max_seq_len` tokens; the last pack may be shorter.

    With `isolate_documents` each document's stretch is a segment of its own and its last token has no
    label; without, the whole pack is one segment and only the very last token of the store has none.
    """

    store: Tokens
    max_seq_len: int
    isolate_documents: bool

    @property
    def num_packs(self) -> int:
        return -(-self.num_tokens // self.max_seq_len)

    @property
    def num_segments(self) -> int:
        """An upper bound, since a document may end where a pack does."""
        return self.num_packs + self._num_documents * self.isolate_documents

    @property
    def num_tokens(self) -> int:
        return len(self.store.tokens)

    @property
    def num_targets(self) -> int:
        return self.num_tokens - (self._num_documents if self.isolate_documents else 1)

    @property
    def _num_documents(self) -> int:
        return len(self.store.document_offsets) - 1

    def pack(self, index: int) -> Pack:
        offsets = self.store.document_offsets
        total = int(offsets[-1])
        start = index * self.max_seq_len
        end = min(start + self.max_seq_len, total)
        assert start < end, (index, total)
        window = np.asarray(self.store.tokens[start : min(end + 1, total)], dtype=np.int64)
        input_ids = window[: end - start]
        labels = np.full(end - start, IGNORE_INDEX, dtype=np.int64)
        labels[: len(window) - 1] = window[1:]
        if not self.isolate_documents:
            return Pack(input_ids, labels, (end - start,))
        first = int(np.searchsorted(offsets, start, side="right"))
        last = int(np.searchsorted(offsets, end, side="right"))
        bounds = np.asarray(offsets[first:last], dtype=np.int64) - start  # ends of documents within (start, end]
        labels[bounds - 1] = IGNORE_INDEX
        edges = np.concatenate([[0], bounds[bounds < end - start], [end - start]])
        return Pack(input_ids, labels, tuple(int(length) for length in np.diff(edges)))


@dataclass(frozen=True)
class BestFitPacking:
    """Whole documents, each at most `max_seq_len` tokens long, in packs chosen once by `best_fit`."""

    store: Tokens
    max_seq_len: int

    @property
    def num_packs(self) -> int:
        return len(self._packs)

    @property
    def num_segments(self) -> int:
        return len(self.store.document_offsets) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.store.tokens)

    @cached_property
    def num_targets(self) -> int:
        trained = self.store.trained
        return self.num_tokens - self.num_segments if trained is None else int(np.count_nonzero(trained))

    def pack(self, index: int) -> Pack:
        """Pack number `index`. A label is the document's next token, where that one is a target."""
        offsets = self.store.document_offsets
        bounds = [(int(offsets[i]), int(offsets[i + 1])) for i in self._packs[index]]
        ids = [np.asarray(self.store.tokens[start:end], dtype=np.int64) for start, end in bounds]
        labels = []
        for (start, end), document in zip(bounds, ids, strict=True):
            target = np.full(end - start, IGNORE_INDEX, dtype=np.int64)
            target[:-1] = document[1:]
            if self.store.trained is not None:
                target[:-1][self.store.trained[start + 1 : end] == 0] = IGNORE_INDEX
            labels.append(target)
        return Pack(np.concatenate(ids), np.concatenate(labels), tuple(end - start for start, end in bounds))

    @cached_property
    def _packs(self) -> list[list[int]]:
        return best_fit(np.diff(np.asarray(self.store.document_offsets)).tolist(), self.max_seq_len)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing bin packing: the indices of each bin, no bin over `capacity` (Johnson 1973).

    The longest comes first, and goes where it leaves the least room; bins hold at most 11/9 of the fewest possible.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # room left -> bins
    rooms: list[int] = []  # the keys of `with_room` that have bins, in order
    for index in order:
        length = lengths[index]
        assert 0 < length <= capacity, (length, capacity)
        place = bisect_left(rooms, length)
        if place == len(rooms):
            chosen, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del rooms[place], with_room[room]
        bins[chosen].append(index)
        left = room - length
        if left:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(chosen)
    return bins
