"""Preference pairs -> token stores, two documents a pair, and the packs that hold whole pairs.

pairs (`preferences.py`) -> ids and mask (`chat.py`) -> no longer than `max_seq_len` together -> store -> packs ->
PreferencePairs. Document 2 i of a store is the chosen side of pair i, document 2 i + 1 the rejected one; both carry
the pair's margin (NaN where its row has none) and weight. In a pack, what both begin with may be laid once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from llmtrain.batch import IGNORE_INDEX, PreferencePairs, empty_pairs
from llmtrain.config.rl import PreferenceDataConfig
from llmtrain.config.sections import Source
from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.formats.preferences import EQUAL, Preference, iter_preferences
from llmtrain.data.ledger import SourceLedger, Split
from llmtrain.data.packing.documents import Pack, best_fit
from llmtrain.data.split import eval_share
from llmtrain.data.store.chat_store import TOO_LONG
from llmtrain.data.store.row_store import RowKind, build_row_stores, leave_out, summary_of, write_document
from llmtrain.data.store.text_stores import Stores
from llmtrain.data.store.token_store import StoreWriter, TokenStore
from llmtrain.protocols import Array, Report

LEAST_SHARED = 8  # tokens of a prompt; a call of attention more costs the smallest models as much as these
BATCH_PAIRS = 256  # rendered and tokenized at a time, on all cores
VALUES = ("margin", "weight")
NO_PROMPT_LEFT = "answers longer than data.max_seq_len"


@dataclass(frozen=True)
class Pair:
    """A pair as tokens."""

    chosen: Encoded
    rejected: Encoded

    @property
    def num_tokens(self) -> int:
        return len(self.chosen.input_ids) + len(self.rejected.input_ids)


@dataclass(frozen=True)
class PairPack(Pack):
    """A pack of whole pairs, each laid as prefix, chosen, rejected: see `PreferencePairs`."""

    prefix_lengths: tuple[int, ...]  # one a pair; `segment_lengths` are two a pair
    answer_lengths: tuple[int, ...]  # two a pair
    weights: Array  # (pairs,) float32
    margins: Array  # (pairs,) float32; NaN where the row has none
    ref_logprobs: Array | None  # (2 pairs,) float32; None: not asked for


@dataclass(frozen=True)
class PairPacking:
    """Whole pairs, each at most `max_seq_len` tokens long, in packs chosen once by best fit over their lengths.

    With `share_prompts` the tokens of `shared_lengths` are laid once where they are at least LEAST_SHARED, and a pair
    is as long as what is laid of it.
    """

    store: TokenStore
    max_seq_len: int
    share_prompts: bool = False
    answers_only: bool = False  # the loss is over the answers' tokens, not over all that is read
    ref_logprobs: Array | None = None  # (documents,) float32, of each document's answer under the reference

    @property
    def num_packs(self) -> int:
        return len(self._packs)

    @property
    def num_segments(self) -> int:
        return self.store.num_documents

    @property
    def num_tokens(self) -> int:
        """Tokens that are laid."""
        return self.store.num_tokens - int(self._prefix_lengths.sum())

    @property
    def num_targets(self) -> int:
        """Every token, since a score is of all that is read; with `answers_only` those of the answers."""
        return self._num_labels if self.answers_only else self.num_tokens

    def documents(self, index: int) -> list[int]:
        """Numbers of the documents of pack `index`, in the order of its segments."""
        return [document for pair in self._packs[index] for document in (2 * pair, 2 * pair + 1)]

    def pack(self, index: int) -> PairPack:
        """Pack number `index`. A label is the answer's next token, and there is none elsewhere."""
        pairs, offsets, trained = self._packs[index], self.store.document_offsets, self.store.trained
        assert trained is not None
        ids, labels = [], []
        for pair in pairs:
            start, middle, end = (int(offset) for offset in offsets[2 * pair : 2 * pair + 3])
            both = np.asarray(self.store.tokens[start:end], dtype=np.int64)
            target = np.full(end - start, IGNORE_INDEX, dtype=np.int64)
            target[:-1] = np.where(trained[start + 1 : end], both[1:], IGNORE_INDEX)  # a first token is never a target
            rejected = middle - start + int(self._prefix_lengths[pair])  # where what is laid of it begins
            ids += [both[: middle - start], both[rejected:]]
            labels += [target[: middle - start], target[rejected:]]
        prefix_lengths = self._prefix_lengths[pairs]
        lengths = np.array([len(side) for side in ids])
        lengths[::2] -= prefix_lengths
        weights, margins = (np.asarray(self.store.values[name])[2 * np.array(pairs)] for name in ("weight", "margin"))
        return PairPack(
            input_ids=np.concatenate(ids),
            labels=np.concatenate(labels),
            segment_lengths=tuple(lengths.tolist()),
            prefix_lengths=tuple(prefix_lengths.tolist()),
            answer_lengths=tuple(int(np.count_nonzero(side != IGNORE_INDEX)) for side in labels),
            weights=weights,
            margins=margins,
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[self.documents(index)],
        )

    @cached_property
    def _num_labels(self) -> int:
        trained = self.store.trained
        assert trained is not None
        return int(np.count_nonzero(trained)) - int(np.count_nonzero(trained[self.store.document_offsets[:-1]]))

    @cached_property
    def _packs(self) -> list[list[int]]:
        both = np.diff(np.asarray(self.store.document_offsets)).reshape(-1, 2).sum(axis=1)
        return best_fit((both - self._prefix_lengths).tolist(), self.max_seq_len)

    @cached_property
    def _prefix_lengths(self) -> Array:
        """Tokens of each pair that are laid once, (pairs,) int64."""
        if not self.share_prompts:
            return np.zeros(self.store.num_documents // 2, dtype=np.int64)
        lengths = shared_lengths(self.store)
        return np.where(lengths < LEAST_SHARED, 0, lengths)


def shared_lengths(store: TokenStore) -> Array:
    """How many tokens of each pair need to be laid only once, (pairs,) int64.

    They are those that both documents begin with, less the last one, and less all from the token on that predicts an
    answer's first: each document keeps a token, and its labels, for itself.
    """
    assert store.trained is not None
    tokens, trained, offsets = (np.asarray(array) for array in (store.tokens, store.trained, store.document_offsets))
    lengths = np.empty(store.num_documents // 2, dtype=np.int64)
    for pair in range(len(lengths)):
        start, middle, end = offsets[2 * pair : 2 * pair + 3]
        num_both = min(middle - start, end - middle)
        chosen, rejected = slice(start, start + num_both), slice(middle, middle + num_both)
        own = (tokens[chosen] != tokens[rejected]) | (trained[chosen] != 0) | (trained[rejected] != 0)
        lengths[pair] = max((int(own.argmax()) if own.any() else num_both) - 1, 0)
    return lengths


def has_margins(store: TokenStore) -> bool:
    """Whether every pair of a store has a margin."""
    return not bool(np.isnan(store.values["margin"]).any())


def collate_pairs(packs: Sequence[tuple[int, Pack]]) -> PreferencePairs:
    """Lay packs of pairs, each with its sample id, end to end."""
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


def build_preference_stores(data: PreferenceDataConfig, encoder: ChatEncoder, *, report: Report) -> Stores:
    """The stores of a run's preferences: found, or built by this process while others wait for it.

    `encoder` trains completions. Raises ValueError, one line, for bad input, a source of which nothing is left, or
    a full disk.
    """
    kind = pair_rows(data, encoder, report)
    return build_row_stores(data, row_settings(data), lambda source: kind, encoder, report)


def pair_rows(data: PreferenceDataConfig, encoder: ChatEncoder, report: Report) -> RowKind:
    """How rows of preferences become documents: both sides of each pair."""
    return RowKind("preferences", "pair", VALUES, partial(_fill, data, encoder, report), _summary)


def row_settings(data: PreferenceDataConfig) -> dict[str, Any]:
    """The settings that decide what a store of answers holds."""
    return {"max_seq_len": data.max_seq_len, "on_long_row": data.on_long_row, "on_bad_row": data.on_bad_row}


def fit_pair(pair: Pair, max_seq_len: int) -> Pair | None:
    """A pair as it is, or with as much of the beginning of both prompts cut off as makes it fit, or None.

    Both sides lose the same tokens; the first of all, which may be BOS, and the last of the prompt stay.
    """
    excess = pair.num_tokens - max_seq_len
    if excess <= 0:
        return pair
    num_cut = -(-excess // 2)
    prompt_tokens = min(int(side.trained.argmax()) for side in (pair.chosen, pair.rejected))
    if num_cut > prompt_tokens - 2:
        return None
    keep = slice(1 + num_cut, None)
    chosen, rejected = (
        Encoded(*(np.concatenate([array[:1], array[keep]]) for array in (side.input_ids, side.trained)))
        for side in (pair.chosen, pair.rejected)
    )
    return Pair(chosen, rejected)


def _fill(
    data: PreferenceDataConfig,
    encoder: ChatEncoder,
    report: Report,
    source: Source,
    eval_fraction: float,
    ledger: SourceLedger,
    writer: StoreWriter,
) -> None:
    """Write the pairs of a source; raises ValueError, one line, for bad input."""
    for preference, pair in _encoded(iter_preferences(source, data.on_bad_row, ledger, report), encoder):
        if isinstance(pair, BadExample):
            leave_out(pair, data.on_bad_row, ledger, preference.num_bytes)
            continue
        split: Split = "eval" if eval_share(preference) < eval_fraction else "train"
        _write(writer, split, preference, pair, data, ledger)


def _encoded(preferences: Iterator[Preference], encoder: ChatEncoder) -> Iterator[tuple[Preference, Pair | BadExample]]:
    while batch := list(islice(preferences, BATCH_PAIRS)):
        sides = encoder.encode([side for preference in batch for side in (preference.chosen, preference.rejected)])
        for preference, chosen, rejected in zip(batch, sides[::2], sides[1::2], strict=True):
            yield preference, _pair(preference, chosen, rejected)


def _pair(
    preference: Preference, chosen: list[Encoded] | BadExample, rejected: list[Encoded] | BadExample
) -> Pair | BadExample:
    if isinstance(chosen, BadExample):
        return chosen
    if isinstance(rejected, BadExample):
        return rejected
    if len(chosen) > 1 or len(rejected) > 1:
        return BadExample(
            "answers cannot share a document",
            f"{preference.where}: the chat template writes earlier answers otherwise once later ones follow, so that "
            "the answers that are compared are no one document",
        )
    return Pair(chosen[0], rejected[0])


def _write(
    writer: StoreWriter,
    split: Split,
    preference: Preference,
    pair: Pair,
    data: PreferenceDataConfig,
    ledger: SourceLedger,
) -> None:
    """Write what is left of a pair, and account for all of it."""
    tally = ledger.tokens[split]
    if np.array_equal(pair.chosen.input_ids, pair.rejected.input_ids):
        tally.dropped_tokens += pair.num_tokens
        ledger.drop(EQUAL, preference.num_bytes)
        return
    fitted = fit_pair(pair, data.max_seq_len)
    if fitted is None or (fitted is not pair and data.on_long_row == "drop"):
        tally.dropped_tokens += pair.num_tokens
        ledger.drop(TOO_LONG if data.on_long_row == "drop" else NO_PROMPT_LEFT, preference.num_bytes)
        return
    tally.truncated_tokens += pair.num_tokens - fitted.num_tokens
    tally.rows_cut += fitted is not pair
    ledger.kept[split].add(preference.num_bytes)
    values = (float("nan") if preference.margin is None else preference.margin, preference.weight)
    sides = (preference.chosen, fitted.chosen), (preference.rejected, fitted.rejected)
    for conversation, side in sides:
        write_document(writer, split, side, tally, conversation.num_bytes, values)


def _summary(ledger: SourceLedger) -> str:
    return summary_of(ledger, "pairs", "pairs cut short by {} tokens of prompts")
