"""Documents -> packs: which tokens of a store make pack number i, where the document bounds are.

Pretraining packs by *stream*: the documents of a store, end to end, are cut every `max_seq_len` tokens.
No token is padded, dropped or repeated, and a pack is found by arithmetic. A label may come from just past the
end of its pack, so in every epoch each token but the first of each document is predicted exactly once.

Tuning packs by *best fit*: whole documents, none cut, as many to a pack as fit. A *layout* puts them
into a pack: one by one here, in pairs in `pairs`, as labelled answers in `answers`. The packs of a store are chosen
once and kept beside its tokens.

A store of less than a few packs can be *repeated*: several passes over it packed together, so that its packs are full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from llmtrain.batch import IGNORE_INDEX
from llmtrain.data.packing.best_fit import ALGORITHM_VERSION, Bins, best_fit, in_order
from llmtrain.data.store.derived import derived
from llmtrain.data.store.token_store import TokenStore
from llmtrain.system.terminal import say
from llmtrain.system.typing import Array, Report


@dataclass(frozen=True)
class Pack:
    """One pack: at most `max_seq_len` tokens."""

    input_ids: Array  # (tokens,) int64
    labels: Array  # (tokens,) int64
    segment_lengths: tuple[int, ...]


@dataclass(frozen=True)
class WeightedPack(Pack):
    """A pack whose labels have other weights in the loss than 1."""

    label_weights: Array  # (tokens,) float32, 0 where there is no label


class Packing(Protocol):
    """The packs of one or more passes over a store."""

    @property
    def num_packs(self) -> int: ...
    @property
    def num_passes(self) -> int: ...  # over the store
    @property
    def num_tokens(self) -> int: ...  # of all packs
    @property
    def num_targets(self) -> int: ...  # tokens that an epoch over the packs trains on
    def pack(self, index: int) -> Pack: ...
    def repeated(self, num_passes: int) -> Packing: ...  # the packs of so many passes, packed together


@dataclass(frozen=True)
class StreamPacking:
    """The documents of a store end to end, cut every `max_seq_len` tokens; the last pack may be shorter.

    With `isolate_documents` each document's stretch is a separate segment and its last token has no
    label; without, the whole pack is one segment and only the very last token of all has none. Stretches without a
    label, in which every document is one token, are no packs: a step of them would train on nothing.
    """

    store: TokenStore
    max_seq_len: int
    isolate_documents: bool
    num_passes: int = 1

    @property
    def num_packs(self) -> int:
        return self._num_stretches - len(self._idle)

    @property
    def num_tokens(self) -> int:
        return self._end - sum(end - start for start, end in map(self._span, self._idle.tolist()))

    @property
    def num_targets(self) -> int:
        num_documents = len(self.store.document_offsets) - 1
        return self._end - (self.num_passes * num_documents if self.isolate_documents else 1)

    @property
    def _end(self) -> int:
        return self.num_passes * len(self.store.tokens)

    def repeated(self, num_passes: int) -> StreamPacking:
        return replace(self, num_passes=num_passes)

    def pack(self, index: int) -> Pack:
        before = np.searchsorted(self._idle - np.arange(len(self._idle)), index, side="right")
        start, end = self._span(index + int(before))
        assert start < end, (index, self._end)
        window = self._tokens(start, min(end + 1, self._end))
        input_ids = window[: end - start]
        labels = np.full(end - start, IGNORE_INDEX, dtype=np.int64)
        labels[: len(window) - 1] = window[1:]
        if not self.isolate_documents:
            return Pack(input_ids, labels, (end - start,))
        bounds = self._document_ends(start, end) - start
        labels[bounds - 1] = IGNORE_INDEX
        edges = np.concatenate([[0], bounds[bounds < end - start], [end - start]])
        return Pack(input_ids, labels, tuple(int(length) for length in np.diff(edges)))

    @property
    def _num_stretches(self) -> int:
        return -(-self._end // self.max_seq_len)

    def _span(self, stretch: int) -> tuple[int, int]:
        """Where the tokens of a stretch are, among those of all passes."""
        start = stretch * self.max_seq_len
        return start, min(start + self.max_seq_len, self._end)

    @cached_property
    def _idle(self) -> Array:
        """The stretches without a label, in order.

        A full one is as many documents of one token, so that of every half as many documents some are all in it: only
        every so many offsets are read.
        """
        if not self._end:
            return np.zeros(0, dtype=np.int64)
        if self.num_passes > 1:
            suspects = np.arange(self._num_stretches)
        else:
            half = self.max_seq_len // 2
            starts = np.asarray(self.store.document_offsets[::half])
            found = starts[:-1][np.diff(starts) == half]
            last = self._num_stretches - 1
            suspects = np.unique([*(found // self.max_seq_len), *((found + half - 1) // self.max_seq_len), last])
        return np.array([each for each in suspects.tolist() if not self._has_labels(*self._span(each))], dtype=np.int64)

    def _has_labels(self, start: int, end: int) -> bool:
        num_unlabelled = len(self._document_ends(start, end)) if self.isolate_documents else int(end == self._end)
        return num_unlabelled < end - start

    def _passes(self, start: int, end: int) -> range:
        """The passes over the store in which the tokens [start, end) of all passes are."""
        return range(start // len(self.store.tokens), (end - 1) // len(self.store.tokens) + 1)

    def _tokens(self, start: int, end: int) -> Array:
        """Tokens [start, end) of all passes, (tokens,) int64."""
        size = len(self.store.tokens)
        parts = [
            self.store.tokens[max(start - number * size, 0) : end - number * size]
            for number in self._passes(start, end)
        ]
        return np.concatenate(parts).astype(np.int64)

    def _document_ends(self, start: int, end: int) -> Array:
        """Where documents end within (start, end] of all passes, (documents,) int64."""
        size, ends = len(self.store.tokens), self.store.document_offsets[1:]
        parts = []
        for number in self._passes(start, end):
            first, last = np.searchsorted(ends, [start - number * size, end - number * size], side="right")
            parts.append(np.asarray(ends[first:last], dtype=np.int64) + number * size)
        return np.concatenate(parts)


class Layout(Protocol):
    """How the documents of a store are put into packs: one by one, or in groups that stay together."""

    @property
    def name(self) -> str: ...  # what decides `lengths`, besides the store
    @property
    def group_size(self) -> int: ...  # documents of a group
    @property
    def lengths(self) -> Array: ...  # (groups,) int64: tokens that each group takes
    @property
    def num_tokens(self) -> int: ...  # of all groups
    @property
    def num_targets(self) -> int: ...  # tokens that a pass trains on
    def pack(self, groups: Sequence[int], ref_logprobs: Array | None) -> Pack: ...  # (documents,) float32


@dataclass(frozen=True)
class BestFitPacking:
    """Whole groups of documents in packs chosen once, by `best_fit` or `in_order`."""

    store: TokenStore
    layout: Layout
    max_seq_len: int
    bins: Bins  # the groups of each pack, numbered on from pass to pass
    num_passes: int = 1
    ref_logprobs: Array | None = None  # (documents,) float32: of each document's answer under the reference

    @property
    def num_packs(self) -> int:
        return len(self.bins)

    @property
    def num_tokens(self) -> int:
        return self.num_passes * self.layout.num_tokens

    @cached_property
    def num_targets(self) -> int:
        return self.num_passes * self.layout.num_targets

    def repeated(self, num_passes: int) -> BestFitPacking:
        if num_passes == self.num_passes:
            return self
        bins = best_fit(np.tile(self.layout.lengths, num_passes), self.max_seq_len)
        return replace(self, bins=bins, num_passes=num_passes)

    def documents(self, index: int) -> list[int]:
        """Numbers of the documents of pack `index`, in the order of its segments."""
        size = self.layout.group_size
        return [size * group + i for group in self._groups(index) for i in range(size)]

    def pack(self, index: int) -> Pack:
        """Pack number `index`."""
        return self.layout.pack(self._groups(index), self.ref_logprobs)

    def _groups(self, index: int) -> list[int]:
        num_groups = self.store.num_documents // self.layout.group_size
        return [group % num_groups for group in self.bins[index]]


def best_fit_packing(
    store: TokenStore, layout: Layout, max_seq_len: int, report: Report = say, *, as_given: bool = False
) -> BestFitPacking:
    """The packs of a store, each of at most `max_seq_len` tokens; no group of documents is longer.

    `as_given` packs hold the documents in their own order.
    """
    fill, name = (in_order, "packs-in-order") if as_given else (best_fit, "packs")
    name = f"{name}-{max_seq_len}-{layout.name}-{ALGORITHM_VERSION}"
    num_groups = store.num_documents // layout.group_size
    kept = derived(store, name, lambda: fill(layout.lengths, max_seq_len).to_array(), report)
    return BestFitPacking(store, layout, max_seq_len, Bins.from_array(kept, num_groups))


def pack_documents(
    store: TokenStore, max_seq_len: int, report: Report = say, *, as_given: bool = False
) -> BestFitPacking:
    """The packs of a store, its documents one by one."""
    return best_fit_packing(store, DocumentLayout(store), max_seq_len, report, as_given=as_given)


@dataclass(frozen=True)
class DocumentLayout:
    """Documents one by one."""

    store: TokenStore
    name: ClassVar[str] = "documents"
    group_size: ClassVar[int] = 1

    @property
    def lengths(self) -> Array:
        return np.diff(np.asarray(self.store.document_offsets))

    @property
    def num_tokens(self) -> int:
        return len(self.store.tokens)

    @property
    def num_targets(self) -> int:
        trained = self.store.trained
        if trained is None:
            return self.store.num_tokens - self.store.num_documents  # nothing predicts a document's first token
        return int(np.count_nonzero(trained))

    def pack(self, groups: Sequence[int], ref_logprobs: Array | None) -> Pack:
        documents = [read_document(self.store, document) for document in groups]
        pack = Pack(
            input_ids=np.concatenate([ids for ids, _ in documents]),
            labels=np.concatenate([next_token_labels(ids, trained) for ids, trained in documents]),
            segment_lengths=tuple(len(ids) for ids, _ in documents),
        )
        if self.store.weights is None:
            return pack
        weights = np.concatenate([_label_weights(self.store, document) for document in groups])
        return WeightedPack(**vars(pack), label_weights=np.where(pack.labels == IGNORE_INDEX, 0, weights))


def _label_weights(store: TokenStore, document: int) -> Array:
    """The weight of each token's label, which is the next token (tokens,) float32."""
    assert store.weights is not None
    start, end = int(store.document_offsets[document]), int(store.document_offsets[document + 1])
    return np.append(np.asarray(store.weights[start + 1 : end]), np.float32(0))


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
