"""Documents -> packs: which tokens of a store make pack number i, where the document bounds lie.

Pretraining packs by *stream*: the documents of a store, end to end, are cut every `max_seq_len` tokens.
No token is padded, dropped or repeated, and a pack is found by arithmetic. A label may lie just past the
end of its pack, so in every epoch each token but the first of each document is predicted exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmtrain.batch import IGNORE_INDEX

Array = np.ndarray[Any, Any]


class Tokens(Protocol):
    """What a token store offers to packing."""

    @property
    def tokens(self) -> Array: ...  # (num_tokens,) unsigned
    @property
    def document_offsets(self) -> Array: ...  # (num_documents + 1,) int64


@dataclass(frozen=True)
class Pack:
    """One pack: at most `max_seq_len` tokens."""

    input_ids: Array  # (tokens,) int64
    labels: Array  # (tokens,) int64
    segment_lengths: tuple[int, ...]


def num_stream_packs(num_tokens: int, max_seq_len: int) -> int:
    """Packs that a store of so many tokens makes; the last one may be shorter."""
    return -(-num_tokens // max_seq_len)


def stream_pack(store: Tokens, index: int, max_seq_len: int, isolate_documents: bool) -> Pack:
    """Pack number `index` of a store.

    With `isolate_documents` each document's stretch is a segment of its own and its last token has no
    label; without, the whole pack is one segment and only the very last token of the store has none.
    """
    offsets = store.document_offsets
    total = int(offsets[-1])
    start = index * max_seq_len
    end = min(start + max_seq_len, total)
    assert start < end, (index, total)
    window = np.asarray(store.tokens[start : min(end + 1, total)], dtype=np.int64)
    input_ids = window[: end - start]
    labels = np.full(end - start, IGNORE_INDEX, dtype=np.int64)
    labels[: len(window) - 1] = window[1:]
    if not isolate_documents:
        return Pack(input_ids, labels, (end - start,))
    first = int(np.searchsorted(offsets, start, side="right"))
    last = int(np.searchsorted(offsets, end, side="right"))
    bounds = np.asarray(offsets[first:last], dtype=np.int64) - start  # ends of documents within (start, end]
    labels[bounds - 1] = IGNORE_INDEX
    edges = np.concatenate([[0], bounds[bounds < end - start], [end - start]])
    return Pack(input_ids, labels, tuple(int(length) for length in np.diff(edges)))
