"""Rows that a chat template turns into tokens -> documents with a loss mask: chats, preference pairs, labelled answers.

rows (`formats`) -> ids and mask (`chat.encode`) -> no longer than `max_seq_len` -> store. Every row that is left out,
and every token that is cut off, is counted under its reason. Document 2 i of a store of pairs is the chosen side of
pair i, document 2 i + 1 the rejected one; both carry the pair's margin (NaN where its row has none) and weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from llmtrain.config.rl import PreferenceDataConfig
from llmtrain.config.sections import ChatDataConfig, OnBadRow, Source
from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.formats.instructions import Example, PlainText, iter_examples
from llmtrain.data.formats.labelled import Labelled, has_labels, iter_labelled
from llmtrain.data.formats.preferences import EQUAL, Preference, iter_preferences
from llmtrain.data.ledger import SourceLedger, Split, TokenTally, answer_summary, chat_summary
from llmtrain.data.sources.files import resolve_rows
from llmtrain.data.split import split_of
from llmtrain.data.store.build import StoreKind, Stores, StoreSpec, find_or_build, store_spec
from llmtrain.data.store.units import Units
from llmtrain.data.store.writer import StoreWriter
from llmtrain.protocols import Report

BATCH_ROWS = 512  # rendered and tokenized at a time, on all cores
TOO_LONG = "longer than data.max_seq_len"
NOTHING_LEFT = "no trained token within data.max_seq_len"
NO_PROMPT_LEFT = "answers longer than data.max_seq_len"

RowData = ChatDataConfig | PreferenceDataConfig
RowType = TypeVar("RowType")


def build_chat_stores(data: ChatDataConfig, encoder: ChatEncoder, *, report: Report) -> Stores:
    """The stores of a tuning run's conversations and texts: found, or built while other processes wait for it.

    Raises ValueError, one line, for bad input, a source of which nothing is left, or a full disk.
    """

    def kind_of(source: Source, eval_fraction: float) -> StoreKind:
        return StoreKind(
            unit="row",
            resolve=resolve_rows,
            content={"kind": "chats", **_content(data, encoder, eval_fraction)},
            dtype=encoder.dtype,
            fill=partial(_fill, _chats(encoder), data, eval_fraction, report),
            summary=chat_summary,
        )

    return _build(data, kind_of, report)


def build_pair_stores(data: PreferenceDataConfig, encoder: ChatEncoder, *, report: Report) -> Stores:
    """The stores of a run's preference pairs; `encoder` trains completions. Raises as `build_chat_stores` does."""

    def kind_of(source: Source, eval_fraction: float) -> StoreKind:
        return _pairs(data, encoder, eval_fraction, report)

    return _build(data, kind_of, report)


def build_answer_stores(data: PreferenceDataConfig, encoder: ChatEncoder, *, report: Report) -> Stores:
    """The stores of a run's labelled answers, of rows with labels or of pairs, as each source has them.

    `encoder` trains completions. Raises as `build_chat_stores` does.
    """

    def kind_of(source: Source, eval_fraction: float) -> StoreKind:
        kind = _labelled if has_labels(source) else _pairs
        return kind(data, encoder, eval_fraction, report)

    return _build(data, kind_of, report)


def _build(data: RowData, kind_of: Callable[[Source, float], StoreKind], report: Report) -> Stores:
    def specs(name: str, sources: Sequence[Source], eval_fraction: float) -> list[StoreSpec]:
        return [
            store_spec(f"data.{name}[{index}]", source, kind_of(source, eval_fraction), data.cache_dir, report)
            for index, source in enumerate(sources)
        ]

    train = specs("train", data.train, data.eval_fraction if data.eval is None else 0.0)
    return find_or_build(data, train, specs("eval", data.eval or (), 0.0), report)


def _content(data: RowData, encoder: ChatEncoder, eval_fraction: float) -> dict[str, Any]:
    """What decides the content of a store besides its source, for every kind of rows."""
    return {
        "encoder": encoder.fingerprint,
        "eval_fraction": eval_fraction,
        "max_seq_len": data.max_seq_len,
        "on_long_row": data.on_long_row,
        "on_bad_row": data.on_bad_row,
    }


def _pairs(data: PreferenceDataConfig, encoder: ChatEncoder, eval_fraction: float, report: Report) -> StoreKind:
    return StoreKind(
        unit="pair",
        resolve=resolve_rows,
        content={"kind": "preference pairs", **_content(data, encoder, eval_fraction)},
        dtype=encoder.dtype,
        fill=partial(_fill, _preferences(encoder), data, eval_fraction, report),
        summary=partial(answer_summary, units="pairs", cut="pairs cut short by {} tokens of prompts"),
        values=("margin", "weight"),
    )


def _labelled(data: PreferenceDataConfig, encoder: ChatEncoder, eval_fraction: float, report: Report) -> StoreKind:
    return StoreKind(
        unit="answer",
        resolve=resolve_rows,
        content={"kind": "labelled answers", **_content(data, encoder, eval_fraction)},
        dtype=encoder.dtype,
        fill=partial(_fill, _labelled_answers(encoder), data, eval_fraction, report),
        summary=partial(answer_summary, units="answers", cut="prompts cut short by {} tokens"),
        values=("desirable", "weight"),
    )


def _batches(rows: Iterator[RowType]) -> Iterator[list[RowType]]:
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


@dataclass(frozen=True)
class _Rows(Generic[RowType]):
    """How rows of one kind are read and stored."""

    read: Callable[[Source, OnBadRow, SourceLedger, Report], Iterator[RowType]]
    content: Callable[[RowType], object]  # all of a row that decides what is stored of it, printed in full by `repr`
    encode: Callable[[Sequence[RowType]], Iterable[Any]]  # of each row what `write` takes, or a BadExample
    write: Callable[..., None]  # (writer, split, row, what `encode` gave, data, ledger)


def _fill(
    rows: _Rows[Any],
    data: RowData,
    eval_fraction: float,
    report: Report,
    source: Source,
    ledger: SourceLedger,
    writer: StoreWriter,
) -> None:
    """Write the rows of a source; raises ValueError, one line, for bad input."""

    def content(row: Any) -> bytes:
        return repr(rows.content(row)).encode(errors="surrogatepass")

    with Units(writer, content, report) as units:
        for batch in _batches(units.remaining(rows.read(source, data.on_bad_row, ledger, report))):
            for row, encoded in zip(batch, rows.encode(batch), strict=True):
                if isinstance(encoded, BadExample):
                    _leave_out(encoded, data.on_bad_row, units.made, row.num_bytes)
                else:
                    rows.write(writer, split_of(row, eval_fraction), row, encoded, data, units.made)
                units.done(row, row.num_bytes)
    ledger.add(units.made)


def _chats(encoder: ChatEncoder) -> _Rows[Example]:
    return _Rows(iter_examples, _said, encoder.encode, partial(_write_chat, encoder.unknown_id))


def _preferences(encoder: ChatEncoder) -> _Rows[Preference]:
    def encode(batch: Sequence[Preference]) -> Iterator[list[Encoded] | BadExample]:
        sides = encoder.encode([side for preference in batch for side in (preference.chosen, preference.rejected)])
        return map(_pair, batch, sides[::2], sides[1::2])

    def content(row: Preference) -> object:
        return _said(row.chosen), _said(row.rejected), row.margin, row.weight, row.group

    return _Rows(iter_preferences, content, encode, _write_pair)


def _labelled_answers(encoder: ChatEncoder) -> _Rows[Labelled]:
    def encode(batch: Sequence[Labelled]) -> list[list[Encoded] | BadExample]:
        return encoder.encode([labelled.conversation for labelled in batch])

    def content(row: Labelled) -> object:
        return _said(row.conversation), row.desirable, row.group

    return _Rows(iter_labelled, content, encode, _write_labelled)


def _said(example: Example) -> object:
    """What an example holds besides its place."""
    if isinstance(example, PlainText):
        return example.text
    return example.messages, example.num_prompt, example.tools, example.num_bytes


def _write_chat(
    unknown_id: int | None,
    writer: StoreWriter,
    split: Split,
    example: Example,
    documents: Sequence[Encoded],
    data: ChatDataConfig,
    ledger: SourceLedger,
) -> None:
    """Write what is left of a row's documents, and account for all of it."""
    tally = ledger.tokens[split]
    kept = [fit(document, data.max_seq_len, data.on_long_row) for document in documents]
    num_tokens = sum(len(document.input_ids) for document in documents)
    num_kept = sum(len(piece.input_ids) for pieces in kept for piece in pieces)
    if not num_kept:
        tally.dropped_tokens += num_tokens
        ledger.drop(TOO_LONG if data.on_long_row == "drop" else NOTHING_LEFT, example.num_bytes)
        return
    tally.truncated_tokens += num_tokens - num_kept
    tally.rows_cut += num_kept < num_tokens
    tally.rows_split += any(len(pieces) > 1 for pieces in kept)
    tally.rows_unrolled += len(documents) > 1
    ledger.kept[split].add(example.num_bytes)
    pieces = [piece for pieces in kept for piece in pieces]
    for i, piece in enumerate(pieces):
        num_unknown = int(np.count_nonzero(piece.input_ids == unknown_id)) if unknown_id is not None else 0
        num_bytes = example.num_bytes if i == 0 else 0  # a row's bytes count once
        _write_document(writer, split, piece, tally, num_bytes, num_unknown=num_unknown)


def _pair(
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
    return [chosen[0], rejected[0]]


def _write_pair(
    writer: StoreWriter,
    split: Split,
    preference: Preference,
    pair: list[Encoded],
    data: PreferenceDataConfig,
    ledger: SourceLedger,
) -> None:
    """Write what is left of a pair, and account for all of it."""
    if np.array_equal(pair[0].input_ids, pair[1].input_ids):
        ledger.tokens[split].dropped_tokens += _num_tokens(pair)
        ledger.drop(EQUAL, preference.num_bytes)
        return
    fitted = _fitted(pair, split, preference.num_bytes, data, ledger)
    values = (float("nan") if preference.margin is None else preference.margin, preference.weight)
    for conversation, side in zip((preference.chosen, preference.rejected), fitted, strict=False):
        _write_document(writer, split, side, ledger.tokens[split], conversation.num_bytes, values)


def _write_labelled(
    writer: StoreWriter,
    split: Split,
    labelled: Labelled,
    documents: Sequence[Encoded],
    data: PreferenceDataConfig,
    ledger: SourceLedger,
) -> None:
    """Write what is left of an answer and its prompt, and account for all of it."""
    # Where a template needs several documents, the last is what generation sees before the last turn of the answer.
    for document in _fitted([documents[-1]], split, labelled.num_bytes, data, ledger):
        values = (float(labelled.desirable), 1.0)
        _write_document(writer, split, document, ledger.tokens[split], labelled.num_bytes, values)


def _fitted(
    documents: list[Encoded], split: Split, num_bytes: int, data: PreferenceDataConfig, ledger: SourceLedger
) -> list[Encoded]:
    """The documents of a row with their prompts cut, or none; the ledger has the account of it."""
    tally = ledger.tokens[split]
    fitted = cut_prompts(documents, data.max_seq_len)
    if fitted is None or (fitted is not documents and data.on_long_row == "drop"):
        tally.dropped_tokens += _num_tokens(documents)
        ledger.drop(TOO_LONG if data.on_long_row == "drop" else NO_PROMPT_LEFT, num_bytes)
        return []
    tally.truncated_tokens += _num_tokens(documents) - _num_tokens(fitted)
    tally.rows_cut += fitted is not documents
    ledger.kept[split].add(num_bytes)
    return fitted


def fit(document: Encoded, max_seq_len: int, on_long_row: str) -> list[Encoded]:
    """A document as it is, without its end, in pieces, or not at all, so that none is longer than `max_seq_len`.

    A piece's first token has nothing before it, so it is never a target; pieces without a target are left out. With
    `max_seq_len` 4, `ab<eot>cdefgh<eot>` of one token per letter becomes `ab<eot>c` (truncate), or also `defg` and
    `h<eot>` (split).
    """
    if len(document.input_ids) <= max_seq_len:
        return [document]
    if on_long_row == "drop":
        return []
    length = len(document.input_ids) if on_long_row == "split" else max_seq_len
    pieces = []
    for start in range(0, length, max_seq_len):
        part = slice(start, start + max_seq_len)
        trained = document.trained[part].copy()
        trained[0] = False
        if trained.any():
            pieces.append(Encoded(document.input_ids[part], trained))
    return pieces


def cut_prompts(documents: list[Encoded], max_seq_len: int) -> list[Encoded] | None:
    """The documents of a row as they are, or with the beginning of their prompt cut so that all fit, or None.

    All lose the same tokens; the first of all, which may be BOS, and the last of the prompt stay: to take 2 tokens off
    `<bos>why not? yes` of one token per word is impossible, to take 1 off gives `<bos>not? yes`.
    """
    excess = _num_tokens(documents) - max_seq_len
    if excess <= 0:
        return documents
    num_cut = -(-excess // len(documents))
    prompt_tokens = min(int(document.trained.argmax()) for document in documents)
    if num_cut > prompt_tokens - 2:
        return None
    keep = slice(1 + num_cut, None)
    return [
        Encoded(*(np.concatenate([array[:1], array[keep]]) for array in (document.input_ids, document.trained)))
        for document in documents
    ]


def _num_tokens(documents: Sequence[Encoded]) -> int:
    return sum(len(document.input_ids) for document in documents)


def _leave_out(bad: BadExample, on_bad_row: OnBadRow, ledger: SourceLedger, num_bytes: int) -> None:
    """Account for a row that cannot be trained on. Raises it as ValueError where bad rows are errors."""
    if on_bad_row == "error":
        raise ValueError(f"{bad}; fix the row, or set data.on_bad_row=skip")
    ledger.drop(bad.reason, num_bytes)


def _write_document(
    writer: StoreWriter,
    split: Split,
    document: Encoded,
    tally: TokenTally,
    num_bytes: int,
    values: Sequence[float] = (),
    num_unknown: int = 0,
) -> None:
    """Write a document whole, and account for each of its tokens."""
    num_tokens, num_trained = len(document.input_ids), int(np.count_nonzero(document.trained))
    writer.write_tokens(split, document.input_ids, num_tokens, num_unknown, document.trained)
    writer.end_document(split, num_bytes, values)
    tally.tokens += num_tokens
    tally.text_tokens += num_tokens
    tally.unknown_tokens += num_unknown
    tally.unpredicted_tokens += 1
    tally.trained_tokens += num_trained
    tally.masked_tokens += num_tokens - num_trained
