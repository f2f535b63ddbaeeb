"""Rows that a chat template turns into tokens -> documents with a loss mask: chats, preference pairs, labelled answers.

rows (`formats`) -> ids and mask (`chat.encode`) -> no longer than `max_seq_len` -> store. Every row that is left out,
and every token that is cut off, is counted under its reason. Document 2 i of a store of pairs is the chosen side of
pair i, document 2 i + 1 the rejected one; both carry the pair's margin (NaN where its row has none) and weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from llmtrain.config.data import ChatDataConfig, OnBadRow, Source
from llmtrain.config.rl import PreferenceDataConfig
from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.formats.instructions import Example, PlainText, iter_examples
from llmtrain.data.formats.labelled import Labelled, has_labels, iter_labelled
from llmtrain.data.formats.messages import Conversation
from llmtrain.data.formats.preferences import EQUAL, Preference, iter_preferences
from llmtrain.data.formats.token_rows import TokenRow
from llmtrain.data.ledger import SourceLedger, Split, answer_summary, chat_summary
from llmtrain.data.sources.files import resolve_rows
from llmtrain.data.split import split_of
from llmtrain.data.store.build import Stores, find_or_build
from llmtrain.data.store.documents import Documents
from llmtrain.data.store.fitting import fitted_answers, fitted_chat, num_tokens
from llmtrain.data.store.spec import StoreKind, StoreSpec, StoreSpecs, store_spec
from llmtrain.system.typing import Report

BATCH_ROWS = 512  # rendered and tokenized at a time, on all cores
TOO_LONG = "longer than data.max_seq_len"
NOTHING_LEFT = "no trained token within data.max_seq_len"
NO_PROMPT_LEFT = "answers longer than data.max_seq_len"

ROWS_VERSION = 3
"""Of what rows become before they are encoded: a store of another version may hold other documents.

2: weights, legacy calls, more roles and keys, questions with what they are about, prompts with marked turns.
3: single messages are no texts; numbers beside ranked answers are not passed over.
"""

RowData = ChatDataConfig | PreferenceDataConfig
RowType = TypeVar("RowType")


def build_chat_stores(data: ChatDataConfig, encoder: ChatEncoder, *, report: Report) -> Stores:
    """The stores of a tuning run's conversations and texts: found, or built while other processes wait for it.

    Raises ValueError, one line, for bad input, a source of which nothing is left, or a full disk.
    """
    return find_or_build(chat_specs(data, encoder, report=report), report)


def build_pair_stores(data: PreferenceDataConfig, encoder: ChatEncoder, *, report: Report) -> Stores:
    """The stores of a run's preference pairs; `encoder` trains completions. Raises as `build_chat_stores` does."""
    return find_or_build(pair_specs(data, encoder, report=report), report)


def build_answer_stores(data: PreferenceDataConfig, encoder: ChatEncoder, *, report: Report) -> Stores:
    """The stores of a run's labelled answers, of rows with labels or of pairs, as each source has them.

    `encoder` trains completions. Raises as `build_chat_stores` does.
    """
    return find_or_build(answer_specs(data, encoder, report=report), report)


def chat_specs(data: ChatDataConfig, encoder: ChatEncoder, *, report: Report) -> StoreSpecs:
    """What those stores are made of. Raises ValueError for a source that is not there."""
    return _specs(data, encoder, lambda source: _chats(encoder), report)


def pair_specs(data: PreferenceDataConfig, encoder: ChatEncoder, *, report: Report) -> StoreSpecs:
    """The same of preference pairs."""
    return _specs(data, encoder, lambda source: _pairs(encoder), report)


def answer_specs(data: PreferenceDataConfig, encoder: ChatEncoder, *, report: Report) -> StoreSpecs:
    """The same of labelled answers."""
    return _specs(
        data, encoder, lambda source: _labelled_answers(encoder) if has_labels(source) else _pairs(encoder), report
    )


@dataclass(frozen=True)
class _Rows(Generic[RowType]):
    """How rows of one kind are read and stored."""

    kind: str
    unit: str  # what a document, or several, make: "pair"
    read: Callable[[Source, OnBadRow, SourceLedger, Report], Iterator[RowType]]
    content: Callable[[RowType], object]  # all of a row that decides what is stored of it, printed in full by `repr`
    encode: Callable[[Sequence[RowType]], Iterable[Any]]  # of each row what `add` takes, or a BadExample
    add: Callable[..., None]  # (made, split, row, what `encode` gave, data)
    summary: Callable[[SourceLedger], str]
    values: tuple[str, ...] = ()  # names of the numbers that each document carries


def _specs(data: RowData, encoder: ChatEncoder, rows_of: Callable[[Source], _Rows[Any]], report: Report) -> StoreSpecs:
    def specs(name: str, sources: Sequence[Source], eval_fraction: float) -> list[StoreSpec]:
        return [
            store_spec(
                f"data.{name}[{index}]",
                source,
                _store_kind(rows_of(source), data, encoder, eval_fraction, report),
                data.cache_dir,
                report,
            )
            for index, source in enumerate(sources)
        ]

    train = specs("train", data.train, data.eval_fraction if data.eval is None else 0.0)
    return StoreSpecs(data, train, specs("eval", data.eval or (), 0.0))


def _store_kind(
    rows: _Rows[Any], data: RowData, encoder: ChatEncoder, eval_fraction: float, report: Report
) -> StoreKind[Any]:
    """What a store of rows is to its builder, whatever the rows are."""

    def read(source: Source, ledger: SourceLedger) -> Iterator[Any]:
        return rows.read(source, data.on_bad_row, ledger, report)

    def try_first(source: Source) -> None:
        next(rows.read(source, data.on_bad_row, SourceLedger(path=source.path), lambda line: None))

    def make(items: Sequence[Any], made: Documents) -> None:
        for start in range(0, len(items), BATCH_ROWS):
            batch = items[start : start + BATCH_ROWS]
            for row, encoded in zip(batch, rows.encode(batch), strict=True):
                if isinstance(encoded, BadExample):
                    _leave_out(encoded, data.on_bad_row, made.ledger, row.num_bytes)
                else:
                    made.ledger.note(list(dict.fromkeys(note for document in encoded for note in document.notes)))
                    rows.add(made, split_of(row, eval_fraction), row, encoded, data)

    return StoreKind(
        unit=rows.unit,
        content={
            "kind": rows.kind,
            "rows": ROWS_VERSION,
            "encoder": encoder.fingerprint,
            "eval_fraction": eval_fraction,
            "max_seq_len": data.max_seq_len,
            "on_long_row": data.on_long_row,
            "on_bad_row": data.on_bad_row,
        },
        dtype=encoder.dtype,
        read=read,
        item_content=lambda row: repr(rows.content(row)).encode(errors="surrogatepass"),
        item_bytes=lambda row: row.num_bytes,
        make=make,
        try_first=try_first,
        summary=rows.summary,
        resolve=resolve_rows,
        values=rows.values,
    )


def _chats(encoder: ChatEncoder) -> _Rows[Example]:
    return _Rows(
        kind="chats",
        unit="row",
        read=iter_examples,
        content=_held,
        encode=encoder.encode,
        add=partial(_add_chat, encoder.unknown_id),
        summary=partial(chat_summary, tokenizer=encoder.name),
    )


def _pairs(encoder: ChatEncoder) -> _Rows[Preference]:
    def encode(batch: Sequence[Preference]) -> Iterator[list[Encoded] | BadExample]:
        sides = encoder.encode([side for preference in batch for side in (preference.chosen, preference.rejected)])
        return map(encoded_pair, batch, sides[::2], sides[1::2])

    return _Rows(
        kind="preference pairs",
        unit="pair",
        read=iter_preferences,
        content=lambda row: (_held(row.chosen), _held(row.rejected), row.margin, row.weight, row.group),
        encode=encode,
        add=_add_pair,
        summary=partial(answer_summary, units="pairs", cut="pairs cut short by {} tokens of prompts"),
        values=("margin", "weight"),
    )


def _labelled_answers(encoder: ChatEncoder) -> _Rows[Labelled]:
    def encode(batch: Sequence[Labelled]) -> Iterator[list[Encoded] | BadExample]:
        found = encoder.encode([labelled.conversation for labelled in batch])
        for labelled, documents in zip(batch, found, strict=True):
            yield documents if isinstance(documents, BadExample) else whole_answers(documents, labelled.where)

    return _Rows(
        kind="labelled answers",
        unit="answer",
        read=iter_labelled,
        content=lambda row: (_held(row.conversation), row.desirable, row.group, row.weight),
        encode=encode,
        add=_add_labelled,
        summary=partial(answer_summary, units="answers", cut="prompts cut short by {} tokens"),
        values=("desirable", "weight"),
    )


def _held(example: Example) -> object:
    """What an example holds besides its place."""
    match example:
        case PlainText():
            return example.text, example.weight
        case TokenRow():
            return example.ids, example.weights, example.weight
        case Conversation():
            weights = example.weights, example.weight
            return example.messages, example.num_prompt, example.tools, example.num_bytes, weights, example.prompt_text


def _add_chat(
    unknown_id: int | None,
    made: Documents,
    split: Split,
    example: Example,
    documents: Sequence[Encoded],
    data: ChatDataConfig,
) -> None:
    """Add what is left of a row's documents, and account for all of it."""
    ledger, tally = made.ledger, made.ledger.tokens[split]
    kept = fitted_chat(documents, data)
    num_made = num_tokens(documents)
    num_kept = sum(num_tokens(pieces) for pieces in kept)
    if not num_kept:
        tally.dropped_tokens += num_made
        ledger.drop(TOO_LONG if data.on_long_row == "drop" else NOTHING_LEFT, example.num_bytes)
        return
    tally.truncated_tokens += num_made - num_kept
    tally.rows_cut += num_kept < num_made
    tally.rows_split += any(len(pieces) > 1 for pieces in kept)
    tally.rows_unrolled += len(documents) > 1
    ledger.kept[split].add(example.num_bytes)
    pieces = [piece for pieces in kept for piece in pieces]
    for i, piece in enumerate(pieces):
        num_unknown = int(np.count_nonzero(piece.input_ids == unknown_id)) if unknown_id is not None else 0
        num_bytes = example.num_bytes if i == 0 else 0  # a row's bytes count once
        _add_document(made, split, piece, num_bytes, num_unknown=num_unknown)


def encoded_pair(
    preference: Preference, chosen: list[Encoded] | BadExample, rejected: list[Encoded] | BadExample
) -> list[Encoded] | BadExample:
    """Chosen and rejected, each as one document."""
    if isinstance(chosen, BadExample):
        return chosen
    if isinstance(rejected, BadExample):
        return rejected
    if len(chosen) > 1 or len(rejected) > 1:
        return BadExample(
            "answers cannot share a document",
            f"{preference.where}: the chat template writes earlier answers otherwise once later ones follow, so that "
            "the answers that are compared are not one document",
        )
    return whole_answers([chosen[0], rejected[0]], preference.where)


def whole_answers(documents: list[Encoded], where: str) -> list[Encoded] | BadExample:
    """Answers that are compared: a BadExample where the row weighs messages of one."""
    if any(document.weights is not None for document in documents):
        return BadExample(
            "weights of messages",
            f"{where}: a message has a weight, and answers are compared whole: give the row a weight, or take it out",
        )
    return documents


def _add_pair(
    made: Documents,
    split: Split,
    preference: Preference,
    pair: list[Encoded],
    data: PreferenceDataConfig,
) -> None:
    """Add what is left of a pair, and account for all of it."""
    if is_equal(pair):
        made.ledger.tokens[split].dropped_tokens += num_tokens(pair)
        made.ledger.drop(EQUAL, preference.num_bytes)
        return
    fitted = _fitted(pair, split, preference.num_bytes, data, made.ledger)
    values = (float("nan") if preference.margin is None else preference.margin, preference.weight)
    for conversation, side in zip((preference.chosen, preference.rejected), fitted, strict=False):
        _add_document(made, split, side, conversation.num_bytes, values)


def is_equal(pair: Sequence[Encoded]) -> bool:
    """Whether the two answers of a pair are the same tokens."""
    return np.array_equal(pair[0].input_ids, pair[1].input_ids)


def _add_labelled(
    made: Documents,
    split: Split,
    labelled: Labelled,
    documents: Sequence[Encoded],
    data: PreferenceDataConfig,
) -> None:
    """Add what is left of an answer and its prompt, and account for all of it."""
    # Where a template needs several documents, the last is what generation sees before the last turn of the answer.
    for document in _fitted([documents[-1]], split, labelled.num_bytes, data, made.ledger):
        values = (float(labelled.desirable), labelled.weight)
        _add_document(made, split, document, labelled.num_bytes, values)


def _fitted(
    documents: list[Encoded], split: Split, num_bytes: int, data: PreferenceDataConfig, ledger: SourceLedger
) -> list[Encoded]:
    """The documents of a row with their prompts cut, or none; the ledger has the account of it."""
    tally = ledger.tokens[split]
    fitted = fitted_answers(documents, data)
    if fitted is None:
        tally.dropped_tokens += num_tokens(documents)
        ledger.drop(TOO_LONG if data.on_long_row == "drop" else NO_PROMPT_LEFT, num_bytes)
        return []
    tally.truncated_tokens += num_tokens(documents) - num_tokens(fitted)
    tally.rows_cut += fitted is not documents
    ledger.kept[split].add(num_bytes)
    return fitted


def _leave_out(bad: BadExample, on_bad_row: OnBadRow, ledger: SourceLedger, num_bytes: int) -> None:
    """Account for a row that cannot be trained on. Raises it as ValueError where bad rows are errors."""
    if on_bad_row == "error":
        raise ValueError(f"{bad}; fix the row, or set data.on_bad_row=skip")
    ledger.drop(bad.reason, num_bytes)


def _add_document(
    made: Documents,
    split: Split,
    document: Encoded,
    num_bytes: int,
    values: Sequence[float] = (),
    num_unknown: int = 0,
) -> None:
    """Add a document whole, and account for each of its tokens."""
    length, num_trained = len(document.input_ids), int(np.count_nonzero(document.trained))
    made.add_tokens(split, document.input_ids, document.trained, document.weights)
    made.end_document(split, num_bytes, values)
    tally = made.ledger.tokens[split]
    tally.tokens += length
    tally.text_tokens += length
    tally.unknown_tokens += num_unknown
    tally.unpredicted_tokens += 1
    tally.trained_tokens += num_trained
    tally.weighted_tokens += 0 if document.weights is None else num_trained
    tally.masked_tokens += length - num_trained
