"""Stored preference pairs -> packs of whole pairs -> PreferencePairs.

Document 2 i of a store is the chosen side of pair i, document 2 i + 1 the rejected one. In a pack, what both begin
with, their prompt, may be stored once: of `<bos>why? yes` and `<bos>why? no` a pack holds `<bos>why`, `? yes`, `? no`,
since the token `?` predicts the first of each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from llmtrain.batch import IGNORE_INDEX, PreferencePairs, empty_pairs
from llmtrain.data.packing.documents import BestFitPacking, Pack, best_fit_packing, next_token_labels, read_document
from llmtrain.data.store.derived import derived
from llmtrain.data.store.token_store import TokenStore
from llmtrain.system.terminal import say
from llmtrain.system.typing import Array, Report

TOKENS_AT_ONCE = 1 << 20
LEAST_SHARED = 8  # tokens of a prompt; one more call of attention costs the smallest models as much as these
SHARED = f"shared-prompts-{LEAST_SHARED}-1"  # the name and version of what is shared


@dataclass(frozen=True)
class PairPack(Pack):
    """A pack of whole pairs, each as prefix, chosen, rejected: see `PreferencePairs`."""

    prefix_lengths: tuple[int, ...]  # one per pair; `segment_lengths` are two per pair
    answer_lengths: tuple[int, ...]  # two per pair
    weights: Array  # (pairs,) float32
    margins: Array  # (pairs,) float32; NaN where the row has none
    ref_logprobs: Array | None  # (2 pairs,) float32; None: not asked for


def pack_pairs(
    store: TokenStore,
    max_seq_len: int,
    report: Report = say,
    *,
    share_prompts: bool = False,
    answers_only: bool = False,
    as_given: bool = False,
) -> BestFitPacking:
    """The packs of a store of pairs.

    `share_prompts`: the `shared_lengths` tokens of a pair are in a pack once, where they are at least LEAST_SHARED;
    `answers_only`: the loss is over the answers' tokens, not over all that is read; `as_given`: pairs in their order.
    """
    shared = None
    if share_prompts:
        shared = derived(store, SHARED, partial(_worth_sharing, store), report)
    return best_fit_packing(store, PairLayout(store, shared, answers_only), max_seq_len, report, as_given=as_given)


@dataclass(frozen=True)
class PairLayout:
    """Documents in pairs, with or without their prompt shared."""

    store: TokenStore
    shared_lengths: Array | None  # (pairs,) int64: tokens of each pair that are in a pack once; None: none are
    answers_only: bool
    group_size: ClassVar[int] = 2

    @property
    def name(self) -> str:
        return "pairs" if self.shared_lengths is None else f"pairs-sharing-{LEAST_SHARED}"

    @property
    def lengths(self) -> Array:
        both = np.diff(np.asarray(self.store.document_offsets)).reshape(-1, 2).sum(axis=1)
        return both if self.shared_lengths is None else both - self.shared_lengths

    @property
    def num_tokens(self) -> int:
        return len(self.store.tokens) - (0 if self.shared_lengths is None else int(self.shared_lengths.sum()))

    @property
    def num_targets(self) -> int:
        """Every token, since a score is of all that is read; with `answers_only` those of the answers."""
        if not self.answers_only:
            return self.num_tokens
        trained = self.store.trained
        assert trained is not None
        return int(np.count_nonzero(trained)) - int(np.count_nonzero(trained[self.store.document_offsets[:-1]]))

    def pack(self, groups: Sequence[int], ref_logprobs: Array | None) -> PairPack:
        """A pack of these pairs. A label is the answer's next token, and there is none elsewhere."""
        ids, labels = [], []
        prefix_lengths = np.zeros(len(groups), np.int64) if self.shared_lengths is None else self.shared_lengths[groups]
        for pair, prefix_length in zip(groups, prefix_lengths.tolist(), strict=True):
            both, trained = read_document(self.store, 2 * pair, num_documents=2)
            target = next_token_labels(both, trained)  # a document's first token is never a target
            start, middle = (int(offset) for offset in self.store.document_offsets[2 * pair : 2 * pair + 2])
            rejected = middle - start + prefix_length  # where the rejected side continues
            ids += [both[: middle - start], both[rejected:]]
            labels += [target[: middle - start], target[rejected:]]
        lengths = np.array([len(side) for side in ids])
        lengths[::2] -= prefix_lengths
        chosen = 2 * np.array(groups)
        weights, margins = (np.asarray(self.store.values[name])[chosen] for name in ("weight", "margin"))
        return PairPack(
            input_ids=np.concatenate(ids),
            labels=np.concatenate(labels),
            segment_lengths=tuple(lengths.tolist()),
            prefix_lengths=tuple(prefix_lengths.tolist()),
            answer_lengths=tuple(int(np.count_nonzero(side != IGNORE_INDEX)) for side in labels),
            weights=weights,
            margins=margins,
            ref_logprobs=None if ref_logprobs is None else ref_logprobs[np.stack([chosen, chosen + 1], 1).ravel()],
        )


def _worth_sharing(store: TokenStore) -> Array:
    """`shared_lengths`, or 0 where they are fewer than LEAST_SHARED."""
    lengths = shared_lengths(store)
    return np.where(lengths < LEAST_SHARED, 0, lengths)


def shared_lengths(store: TokenStore) -> Array:
    """How many tokens of each pair need to be in a pack only once, (pairs,) int64.

    They are those that both documents begin with, without the last one, and without any from the token on that
    predicts an answer's first: each document keeps a token, and its labels, for itself.
    """
    assert store.trained is not None
    offsets = np.asarray(store.document_offsets)
    parts = [np.zeros(0, dtype=np.int64)]
    first, num_pairs = 0, store.num_documents // 2
    while first < num_pairs:
        last = int(np.searchsorted(offsets, offsets[2 * first] + TOKENS_AT_ONCE, side="right")) // 2
        last = min(max(last, first + 1), num_pairs)
        base = int(offsets[2 * first])
        span = slice(base, int(offsets[2 * last]))
        parts.append(_shared(store.tokens[span], store.trained[span], offsets[2 * first : 2 * last + 1] - base))
        first = last
    return np.concatenate(parts)


def _shared(tokens: Array, trained: Array, offsets: Array) -> Array:
    """The same of some pairs that follow each other: their tokens, targets, and bounds (2 pairs + 1,)."""
    starts, middles, ends = offsets[:-1:2], offsets[1::2], offsets[2::2]
    num_both = np.minimum(middles - starts, ends - middles)
    firsts = np.cumsum(num_both) - num_both  # of each pair, among the places that both documents have
    place = np.arange(int(num_both.sum())) - np.repeat(firsts, num_both)
    chosen, rejected = place + np.repeat(starts, num_both), place + np.repeat(middles, num_both)
    own = (tokens[chosen] != tokens[rejected]) | (trained[chosen] != 0) | (trained[rejected] != 0)
    before_own = np.minimum.reduceat(np.where(own, place, np.iinfo(np.int64).max), firsts)
    shared: Array = np.maximum(np.minimum(before_own, num_both) - 1, 0)
    return shared


def has_margins(store: TokenStore) -> bool:
    """Whether every pair of a store has a margin."""
    return not bool(np.isnan(store.values["margin"]).any())


def collate_pairs(packs: Sequence[tuple[int, Pack]]) -> PreferencePairs:
    """Packs of pairs, each with its sample id, end to end in one microbatch."""
    pair_packs = [pack for _, pack in packs if isinstance(pack, PairPack)]
    assert len(pair_packs) == len(packs)
    if not packs:
        return empty_pairs()
    lengths = tuple(length for pack in pair_packs for length in pack.segment_lengths)
    prefix_lengths = tuple(length for pack in pair_packs for length in pack.prefix_lengths)
    margins = np.concatenate([pack.margins for pack in pair_packs])
    ref_logprobs = [pack.ref_logprobs for pack in pair_packs if pack.ref_logprobs is not None]
    return PreferencePairs(
        input_ids=torch.from_numpy(np.concatenate([pack.input_ids for pack in pair_packs])),
        labels=torch.from_numpy(np.concatenate([pack.labels for pack in pair_packs])),
        position_ids=torch.from_numpy(_positions(prefix_lengths, lengths)),
        prefix_lengths=prefix_lengths,
        segment_lengths=lengths,
        answer_lengths=tuple(length for pack in pair_packs for length in pack.answer_lengths),
        weights=torch.from_numpy(np.concatenate([pack.weights for pack in pair_packs])),
        margins=None if np.isnan(margins).all() else torch.from_numpy(margins),
        num_pairs=len(lengths) // 2,
        sample_ids=tuple(sample_id for sample_id, _ in packs),
        ref_logprobs=torch.from_numpy(np.concatenate(ref_logprobs)) if ref_logprobs else None,
    )


def _positions(prefix_lengths: Sequence[int], segment_lengths: Sequence[int]) -> Array:
    """Each token's place in its document; those of segments continue their prefix's."""
    sides = zip(prefix_lengths, segment_lengths[::2], segment_lengths[1::2], strict=True)
    places = [(np.arange(start + chosen), start + np.arange(rejected)) for start, chosen, rejected in sides]
    return np.concatenate([part for pair in places for part in pair])
