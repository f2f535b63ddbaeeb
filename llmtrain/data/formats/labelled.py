"""Labelled rows: an instruction row and a field that is true if its last answer is desirable (KTO).

The conversation is read in any format of `instructions`, without the label (Ethayarajh et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

from llmtrain.config.sections import OnBadRow, Source
from llmtrain.data.formats.instructions import RowFormat, check_canonical, recognise, recognised_as, renamed
from llmtrain.data.formats.messages import Conversation, UnfitRow, answered, first_question, shown
from llmtrain.data.formats.read import FormatReader, iter_rows, read_examples
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.rows import Row
from llmtrain.protocols import Report

LABELS = ("label", "kto_tag")
"""Fields that may say whether an answer is desirable."""


@dataclass(frozen=True)
class Labelled:
    """A conversation whose last message is labelled."""

    conversation: Conversation
    desirable: bool
    group: str  # the first human turn: what the same question has in common

    @property
    def num_bytes(self) -> int:
        return self.conversation.num_bytes

    def digest(self) -> bytes:
        """16 bytes that depend on the question alone, so that all its answers fall into the same split."""
        return blake2b(self.group.encode(), digest_size=16).digest()


def has_labels(source: Source) -> bool:
    """Whether the first good row of a source has a label. Raises ValueError for a source that is not there."""
    first = next(
        (row for row in iter_rows(source, lambda row: _label_field(row, source) is not None) if isinstance(row, Row)),
        None,
    )
    return first is not None and _label_field(first, source) is not None


def iter_labelled(source: Source, on_bad_row: OnBadRow, ledger: SourceLedger, report: Report) -> Iterator[Labelled]:
    """The labelled answers of a source, read as `read_examples` does."""
    fields = {name: field for name, field in source.fields.items() if name != LABELS[0]}
    check_canonical(fields, source.path)
    return read_examples(source, partial(_reader, source, fields), on_bad_row, ledger, report, unit="answer")


def _reader(source: Source, fields: Mapping[str, str], row: Row) -> FormatReader[Labelled]:
    _, unlabelled = _without_label(row, source)
    row_format = recognise(unlabelled, fields)
    return FormatReader(
        f"labelled {row_format.name}",
        partial(_labelled, row_format, source, fields),
        partial(_described, row_format, fields),
    )


def _labelled(row_format: RowFormat, source: Source, fields: Mapping[str, str], row: Row) -> list[Labelled]:
    """A row's one answer; raises UnfitRow, UnwantedRow, UnicodeEncodeError, RecursionError."""
    label, unlabelled = _without_label(row, source)
    if label is None:
        raise UnfitRow("no label", f"no field is true or false ({', '.join(LABELS)}), so the answer has no label")
    dialogue = row_format.convert(renamed(unlabelled.fields, fields))
    if isinstance(dialogue, str):
        raise UnfitRow("no answer", "a text alone has no answer that the label could be of")
    if dialogue.messages[-1]["role"] != "assistant" or len(dialogue.messages) < 2:
        raise UnfitRow("does not end with an answer", "the last message is not an answer to one before it")
    conversation = answered(dialogue, dialogue.num_prompt or len(dialogue.messages) - 1, row.where)
    return [Labelled(conversation, label, first_question(dialogue.messages))]


def _label_field(row: Row, source: Source) -> str | None:
    names = [source.fields[LABELS[0]]] if LABELS[0] in source.fields else LABELS
    return next((name for name in names if isinstance(row.fields.get(name), bool)), None)


def _without_label(row: Row, source: Source) -> tuple[bool | None, Row]:
    """A row's label, None if it has none, and the row without it."""
    name = _label_field(row, source)
    rest = {field: value for field, value in row.fields.items() if field != name}
    return None if name is None else bool(row.fields[name]), Row(rest, row.where)


def _described(row_format: RowFormat, fields: Mapping[str, str], first: Labelled) -> str:
    """What was recognised, and one row of it, on one line."""
    label = "desirable" if first.desirable else "undesirable"
    return f"labelled {recognised_as(row_format, fields)}; the first, {label}: {shown(first.conversation.messages)}"
