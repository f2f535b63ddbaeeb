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

import numpy as np
import torch

from llmtrain.batch import IGNORE_INDEX, PreferencePairs, empty_pairs
from llmtrain.config import Source
from llmtrain.config_rlhf import PreferenceDataConfig
from llmtrain.data.build import eval_share
from llmtrain.data.chat import BadExample, ChatEncoder, Encoded
from llmtrain.data.chat_store import TOO_LONG, ChatPlan
from llmtrain.data.files import fingerprint, resolved_revision, source_fingerprint
from llmtrain.data.ledger import SPLITS, Ledger, SourceLedger, Split
from llmtrain.data.pack import Array, Pack, best_fit
from llmtrain.data.preferences import EQUAL, Preference, iter_preferences
from llmtrain.data.store import FORMAT, StoreWriter, TokenStore, discard_unfinished, is_store, open_store
from llmtrain.data.stores import Stores, find_or_build, read_ledger, require_held_out, slug
from llmtrain.durable import Report, cache_root, is_disk_full

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


@dataclass(frozen=True)
class PairPacking:
    """Whole pairs, each at most `max_seq_len` tokens long, in packs chosen once by best fit over their lengths.

    With `share_prompts` the tokens of `shared_lengths` are laid once where they are at least LEAST_SHARED, and a pair
    is as long as what is laid of it.
    """

    store: TokenStore
    max_seq_len: int
    share_prompts: bool = False

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
        """Every token: a score is of all that is read."""
        return self.num_tokens

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
        )

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
    fraction = data.eval_fraction if data.eval is None else 0.0
    train_plans = [_plan(f"data.train[{i}]", source, data, fraction, encoder) for i, source in enumerate(data.train)]
    eval_plans = [_plan(f"data.eval[{i}]", source, data, 0.0, encoder) for i, source in enumerate(data.eval or ())]
    for plan in (*train_plans, *eval_plans):
        find_or_build(plan.folder, partial(_build_or_tell, plan, data, encoder, report), report)
    train = [_opened(plan) for plan in train_plans]
    if data.eval is None:
        held_out = [open_store(plan.folder, "eval") for plan in train_plans] if fraction else []
        require_held_out(data, train, held_out, report)
    else:
        held_out = [_opened(plan) for plan in eval_plans]
    ledger = Ledger(*([read_ledger(plan.folder) for plan in plans] for plans in (train_plans, eval_plans)))
    ledger.check()
    return Stores(train, held_out, ledger)


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


def _plan(key: str, source: Source, data: PreferenceDataConfig, eval_fraction: float, encoder: ChatEncoder) -> ChatPlan:
    if is_store(source.path):
        raise ValueError(f"{key}={source.path}: a token store is no source of preferences; give the rows")
    read = source_fingerprint(source)
    content = {
        "kind": "preferences",
        "encoder": encoder.fingerprint,
        "eval_fraction": eval_fraction,
        "max_seq_len": data.max_seq_len,
        "on_long_row": data.on_long_row,
        "on_bad_row": data.on_bad_row,
    }
    name = fingerprint({"format": FORMAT, "source": read, **content})
    return ChatPlan(
        key=key,
        source=source,
        source_fingerprint=read,
        folder=cache_root(data.cache_dir) / f"{slug(source.path)}-{name}",
        eval_fraction=eval_fraction,
        meta={
            "source": source.model_dump(),
            "source_fingerprint": read,
            "revision": resolved_revision(source),
            **content,
        },
    )


def _opened(plan: ChatPlan) -> TokenStore:
    store = open_store(plan.folder, "train")
    if not store.num_tokens:
        raise ValueError(
            f"{plan.key}={plan.source.path}: no pair is left to train on; ledger of {plan.folder} says why"
        )
    return store


def _build_or_tell(plan: ChatPlan, data: PreferenceDataConfig, encoder: ChatEncoder, report: Report) -> None:
    discard_unfinished(plan.folder, VALUES)  # of a build that was killed: rows are tokenized again from the first
    try:
        _build(plan, data, encoder, report)
    except ValueError:
        discard_unfinished(plan.folder, VALUES)
        raise
    except OSError as error:
        discard_unfinished(plan.folder, VALUES)
        if not is_disk_full(error):
            raise
        raise ValueError(f"{plan.folder}: the disk is full; free some space or move data.cache_dir") from None


def _build(plan: ChatPlan, data: PreferenceDataConfig, encoder: ChatEncoder, report: Report) -> None:
    ledger = SourceLedger(path=plan.source.path)
    preferences = iter_preferences(plan.source, data.on_bad_row, ledger, report)
    with StoreWriter(plan.folder, encoder.dtype, masked=True, values=VALUES) as writer:
        for preference, pair in _encoded(preferences, encoder):
            if isinstance(pair, BadExample):
                if data.on_bad_row == "error":
                    raise ValueError(f"{pair}; mend it, or set data.on_bad_row=skip")
                ledger.drop(pair.reason, preference.num_bytes)
                continue
            split: Split = "eval" if eval_share(preference) < plan.eval_fraction else "train"
            _write(writer, split, preference, pair, data, ledger)
        writer.flush(ledger.read.documents)
        ledger.check()
        if source_fingerprint(plan.source) != plan.source_fingerprint:
            raise ValueError(f"{plan.key} ({plan.source.path}): its files changed while they were read; start again")
        writer.finish({**plan.meta, "ledger": ledger.to_dict()})
    report(f"{plan.key} ({plan.source.path}): {_summary(ledger)}")


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
        num_trained = int(np.count_nonzero(side.trained))
        writer.write_tokens(split, side.input_ids, len(side.input_ids), 0, side.trained)
        writer.end_document(split, conversation.num_bytes, values)
        tally.tokens += len(side.input_ids)
        tally.text_tokens += len(side.input_ids)
        tally.unpredicted_tokens += 1
        tally.trained_tokens += num_trained
        tally.masked_tokens += len(side.input_ids) - num_trained


def _summary(ledger: SourceLedger) -> str:
    """The account in one line."""
    parts = []
    for split in SPLITS:
        num_pairs, tally = ledger.kept[split].documents, ledger.tokens[split]
        if num_pairs:
            parts.append(f"{num_pairs:,} {split} pairs, {tally.tokens:,} tokens")
        if tally.rows_cut:
            parts.append(f"{tally.rows_cut:,} {split} pairs cut short by {tally.truncated_tokens:,} tokens of prompts")
    parts += [f"{tally.documents:,} bad rows skipped: {reason}" for reason, tally in ledger.bad_rows.items()]
    parts += [f"{tally.documents:,} pairs dropped: {reason}" for reason, tally in ledger.dropped.items()]
    return "; ".join(parts)
