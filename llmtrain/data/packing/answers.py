"""Answers that are judged one by one -> token stores, one document an answer, and packs -> LabelledAnswers.

They come of rows with a label, or of preference pairs taken apart: the chosen answer of a pair is desirable, the
rejected one is not. Each document also has a *mismatched* form, its prompt with the answer to another prompt of the
store, of which the KL of a policy is estimated (Ethayarajh 2024, section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch

from llmtrain.batch import IGNORE_INDEX, LabelledAnswers, empty_answers
from llmtrain.config.rl import PreferenceDataConfig
from llmtrain.config.sections import Source
from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.formats.labelled import Judged, holds_judgements, iter_judged
from llmtrain.data.ledger import SourceLedger, Split
from llmtrain.data.packing.documents import Pack, best_fit
from llmtrain.data.packing.pairs import NO_PROMPT_LEFT, pair_rows, row_settings
from llmtrain.data.store.build import eval_share
from llmtrain.data.store.chat_store import TOO_LONG
from llmtrain.data.store.row_store import RowKind, build_row_stores, leave_out, summary_of, write_document
from llmtrain.data.store.text_stores import Stores
from llmtrain.data.store.token_store import StoreWriter, TokenStore
from llmtrain.protocols import Array, Report

BATCH_ROWS = 512  # rendered and tokenized at a time, on all cores
VALUES = ("desirable", "weight")


@dataclass(frozen=True)
class AnswerPack(Pack):
    """A pack of judged answers with their prompts; every array (answers,)."""

    answer_lengths: tuple[int, ...]
    desirable: Array  # bool
    weights: Array  # float32
    ref_logprobs: Array | None  # float32; None: not known yet


@dataclass(frozen=True)
class AnswerPacking:
    """Whole documents, each with one answer, in packs chosen once by best fit.

    `mismatched` packs hold the same documents in the same order, each with the answer of another one.
    """

    store: TokenStore
    max_seq_len: int
    mismatched: bool = False
    ref_logprobs: Array | None = None  # (documents,) float32, of each document's answer under the reference

    @property
    def num_packs(self) -> int:
        return len(self._packs)

    @property
    def num_segments(self) -> int:
        return self.store.num_documents

    @property
    def num_tokens(self) -> int:
        return self.store.num_tokens

    @cached_property
    def num_targets(self) -> int:
        """The tokens of the answers."""
        return int(np.count_nonzero(self._trained))

    @cached_property
    def desirable(self) -> Array:
        """Which documents' answers are desirable, (documents,) bool."""
        labels = self.store.values.get("desirable")
        return np.arange(self.store.num_documents) % 2 == 0 if labels is None else np.asarray(labels) > 0

    @cached_property
    def weights(self) -> Array:
        """What each document counts, (documents,) float32: a pair's two answers what the pair does."""
        return np.asarray(self.store.values["weight"])

    def documents(self, index: int) -> list[int]:
        """Numbers of the documents of pack `index`, in order."""
        return self._packs[index]

    def pack(self, index: int) -> AnswerPack:
        """Pack number `index`. A label is the answer's next token, and there is none elsewhere."""
        documents = self._packs[index]
        parts = [self._mismatch(document) if self.mismatched else self._document(document) for document in documents]
        labels = [np.append(np.where(trained[1:], ids[1:], IGNORE_INDEX), IGNORE_INDEX) for ids, trained in parts]
        return AnswerPack(
            input_ids=np.concatenate([ids for ids, _ in parts]),
            labels=np.concatenate(labels),
            segment_lengths=tuple(len(ids) for ids, _ in parts),
            answer_lengths=tuple(int(np.count_nonzero(part != IGNORE_INDEX)) for part in labels),
            desirable=self.desirable[documents],
            weights=self.weights[documents],
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[documents],
        )

    def _document(self, document: int) -> tuple[Array, Array]:
        """Ids (tokens,) int64 and which are the answer's."""
        start, end = (int(offset) for offset in self.store.document_offsets[document : document + 2])
        ids, trained = self.store.tokens[start:end], self._trained[start:end]
        return np.asarray(ids, dtype=np.int64), np.asarray(trained, dtype=bool)

    def _mismatch(self, document: int) -> tuple[Array, Array]:
        """A document's prompt with the answer of the one half the store away, cut to `max_seq_len`."""
        stride = 1 if "desirable" in self.store.values else 2  # both answers of a pair are to one prompt
        num_away = stride * (self.store.num_documents // stride // 2)
        assert num_away, "the store has answers to one prompt only"
        (ids, trained), (others, trained_others) = (
            self._document(number) for number in (document, (document + num_away) % self.store.num_documents)
        )
        before, behind = ids[: int(trained.argmax())], slice(int(trained_others.argmax()), None)
        whole = np.concatenate([before, others[behind]])[: self.max_seq_len]
        return whole, np.concatenate([np.zeros(len(before), dtype=bool), trained_others[behind]])[: len(whole)]

    @property
    def _trained(self) -> Array:
        assert self.store.trained is not None
        return self.store.trained

    @cached_property
    def _packs(self) -> list[list[int]]:
        return best_fit(np.diff(np.asarray(self.store.document_offsets)).tolist(), self.max_seq_len)


def has_mismatches(store: TokenStore) -> bool:
    """Whether there are answers to two prompts at least."""
    return store.num_documents >= (2 if "desirable" in store.values else 4)


def collate_answers(packs: Sequence[tuple[int, Pack]]) -> LabelledAnswers:
    """Lay packs of judged answers, each with its sample id, end to end."""
    answer_packs = [pack for _, pack in packs if isinstance(pack, AnswerPack)]
    assert len(answer_packs) == len(packs)
    if not packs:
        return empty_answers()
    lengths = tuple(length for pack in answer_packs for length in pack.segment_lengths)
    ref_logprobs = [pack.ref_logprobs for pack in answer_packs if pack.ref_logprobs is not None]
    return LabelledAnswers(
        input_ids=torch.from_numpy(np.concatenate([pack.input_ids for pack in answer_packs])),
        labels=torch.from_numpy(np.concatenate([pack.labels for pack in answer_packs])),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        segment_lengths=lengths,
        answer_lengths=tuple(length for pack in answer_packs for length in pack.answer_lengths),
        desirable=torch.from_numpy(np.concatenate([pack.desirable for pack in answer_packs])),
        weights=torch.from_numpy(np.concatenate([pack.weights for pack in answer_packs])),
        ref_logprobs=torch.from_numpy(np.concatenate(ref_logprobs)) if ref_logprobs else None,
        sample_ids=tuple(sample_id for sample_id, _ in packs),
    )


def build_answer_stores(data: PreferenceDataConfig, encoder: ChatEncoder, *, report: Report) -> Stores:
    """The stores of a run's judged answers, of rows with labels or of pairs, as each source has them.

    `encoder` trains completions. Raises ValueError, one line, for bad input, a source of which nothing is left, a
    split with answers to one prompt only, or a full disk.
    """
    judged = RowKind("judged", "answer", VALUES, partial(_fill, data, encoder, report), _summary)
    pairs = pair_rows(data, encoder, report)

    def kind_of(source: Source) -> RowKind:
        return judged if holds_judgements(source) else pairs

    stores = build_row_stores(data, row_settings(data), kind_of, encoder, report)
    for store in (*stores.train, *stores.eval):
        if store.num_documents and not has_mismatches(store):
            raise ValueError(
                f"{store.path}: its {store.split} split has answers to one prompt only, and preference.loss=kto needs "
                "those of another to measure the KL by: give more rows"
            )
    return stores


def fit_answer(document: Encoded, max_seq_len: int) -> Encoded | None:
    """A document as it is, or with as much of its prompt's beginning cut off as makes it fit, or None.

    The first token of all, which may be BOS, and the last of the prompt stay.
    """
    excess = len(document.input_ids) - max_seq_len
    if excess <= 0:
        return document
    if excess > int(document.trained.argmax()) - 2:
        return None
    keep = slice(1 + excess, None)
    return Encoded(*(np.concatenate([array[:1], array[keep]]) for array in (document.input_ids, document.trained)))


def _fill(
    data: PreferenceDataConfig,
    encoder: ChatEncoder,
    report: Report,
    source: Source,
    eval_fraction: float,
    ledger: SourceLedger,
    writer: StoreWriter,
) -> None:
    """Write the judged answers of a source; raises ValueError, one line, for bad input."""
    for judged, document in _encoded(iter_judged(source, data.on_bad_row, ledger, report), encoder):
        if isinstance(document, BadExample):
            leave_out(document, data.on_bad_row, ledger, judged.conversation.num_bytes)
            continue
        split: Split = "eval" if eval_share(judged) < eval_fraction else "train"
        _write(writer, split, judged, document, data, ledger)


def _encoded(rows: Iterator[Judged], encoder: ChatEncoder) -> Iterator[tuple[Judged, Encoded | BadExample]]:
    while batch := list(islice(rows, BATCH_ROWS)):
        encoded = encoder.encode([judged.conversation for judged in batch])
        for judged, documents in zip(batch, encoded, strict=True):
            # Where a template needs several, the last is what generation sees before the last turn of the answer.
            yield judged, documents if isinstance(documents, BadExample) else documents[-1]


def _write(
    writer: StoreWriter,
    split: Split,
    judged: Judged,
    document: Encoded,
    data: PreferenceDataConfig,
    ledger: SourceLedger,
) -> None:
    """Write what is left of an answer and its prompt, and account for all of it."""
    tally, num_bytes, num_tokens = ledger.tokens[split], judged.conversation.num_bytes, len(document.input_ids)
    fitted = fit_answer(document, data.max_seq_len)
    if fitted is None or (fitted is not document and data.on_long_row == "drop"):
        tally.dropped_tokens += num_tokens
        ledger.drop(TOO_LONG if data.on_long_row == "drop" else NO_PROMPT_LEFT, num_bytes)
        return
    tally.truncated_tokens += num_tokens - len(fitted.input_ids)
    tally.rows_cut += fitted is not document
    ledger.kept[split].add(num_bytes)
    write_document(writer, split, fitted, tally, num_bytes, (float(judged.desirable), 1.0))


def _summary(ledger: SourceLedger) -> str:
    return summary_of(ledger, "answers", "prompts cut short by {} tokens")
