"""Documents -> packs: which tokens of a store make pack number i, where the document bounds are.

Pretraining packs by *stream*: the documents of a store, end to end, are cut every `max_seq_len` tokens.
No token is padded, dropped or repeated, and a pack is found by arithmetic. A label may come from just past the
end of its pack, so in every epoch each token but the first of each document is predicted exactly once.

Tuning packs by *best fit*: whole documents, none cut, as many to a pack as fit. A *layout* puts them
into a pack: one by one here, in pairs in `pairs`, as labelled answers in `answers`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from llmtrain.batch import IGNORE_INDEX
from llmtrain.data.store.token_store import TokenStore
from llmtrain.protocols import Array


@dataclass(frozen=True)
class Pack:
    """One pack: at most `max_seq_len` tokens."""

    input_ids: Array  # (tokens,) int64
    labels: Array  # (tokens,) int64
    segment_lengths: tuple[int, ...]


class Packing(Protocol):
    """The packs of a store."""

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

    With `isolate_documents` each document's stretch is a separate segment and its last token has no
    label; without, the whole pack is one segment and only the very last token of the store has none.
    """

    store: TokenStore
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


class Layout(Protocol):
    """How the documents of a store are put into packs: one by one, or in groups that stay together."""

    @property
    def group_size(self) -> int: ...  # documents of a group
    @property
    def lengths(self) -> Array: ...  # (groups,) int64: tokens that each group takes
    @property
    def num_targets(self) -> int: ...  # tokens that an epoch trains on
    def pack(self, groups: Sequence[int], ref_logprobs: Array | None) -> Pack: ...  # (documents,) float32


@dataclass(frozen=True)
class BestFitPacking:
    """Whole groups of documents in packs chosen once by `best_fit`."""

    store: TokenStore
    layout: Layout
    bins: Sequence[Sequence[int]]  # the groups of each pack
    ref_logprobs: Array | None = None  # (documents,) float32: of each document's answer under the reference

    @property
    def num_packs(self) -> int:
        return len(self.bins)

    @property
    def num_segments(self) -> int:
        return len(self.store.document_offsets) - 1

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of all packs."""
        return int(self.layout.lengths.sum())

    @cached_property
    def num_targets(self) -> int:
        return self.layout.num_targets

    def documents(self, index: int) -> list[int]:
        """Numbers of the documents of pack `index`, in the order of its segments."""
        size = self.layout.group_size
        return [size * group + i for group in self.bins[index] for i in range(size)]

    def pack(self, index: int) -> Pack:
        """Pack number `index`."""
        return self.layout.pack(self.bins[index], self.ref_logprobs)


def best_fit_packing(store: TokenStore, layout: Layout, max_seq_len: int) -> BestFitPacking:
    """The packs of a store, each of at most `max_seq_len` tokens; no group of documents is longer."""
    return BestFitPacking(store, layout, best_fit(layout.lengths.tolist(), max_seq_len))


def pack_documents(store: TokenStore, max_seq_len: int) -> BestFitPacking:
    """The packs of a store, its documents one by one."""
    return best_fit_packing(store, DocumentLayout(store), max_seq_len)


@dataclass(frozen=True)
class DocumentLayout:
    """Documents one by one."""

    store: TokenStore
    group_size: ClassVar[int] = 1

    @property
    def lengths(self) -> Array:
        return np.diff(np.asarray(self.store.document_offsets))

    @property
    def num_targets(self) -> int:
        trained = self.store.trained
        if trained is None:
            return self.store.num_tokens - self.store.num_documents  # nothing predicts a document's first token
        return int(np.count_nonzero(trained))

    def pack(self, groups: Sequence[int], ref_logprobs: Array | None) -> Pack:
        documents = [read_document(self.store, document) for document in groups]
        return Pack(
            input_ids=np.concatenate([ids for ids, _ in documents]),
            labels=np.concatenate([next_token_labels(ids, trained) for ids, trained in documents]),
            segment_lengths=tuple(len(ids) for ids, _ in documents),
        )


def read_document(store: TokenStore, document: int, num_documents: int = 1) -> tuple[Array, Array]:
    """Ids (tokens,) int64 of documents that follow each other, and which of them are targets (tokens,) bool."""
    start, end = int(store.document_offsets[document]), int(store.document_offsets[document + num_documents])
    ids = np.asarray(store.tokens[start:end], dtype=np.int64)
    if store.trained is None:
        trained = np.ones(len(ids), dtype=bool)
        trained[0] = False
        return ids, trained
    return ids, np.asarray(store.trained[start:end], dtype=bool)


def next_token_labels(ids: Array, trained: Array) -> Array:
    """Each token's label (tokens,) int64: the next token where that one is a target."""
    labels = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
    labels[:-1] = np.where(trained[1:], ids[1:], IGNORE_INDEX)
    return labels


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
