"""Labelled rows: an instruction row and a field that is true if its last answer is desirable (KTO).

The conversation is read in any format of `instructions`, without the label (Ethayarajh et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

from llmtrain.config.data import OnBadRow, Source
from llmtrain.data.formats.faults import UnfitRow
from llmtrain.data.formats.instructions import check_canonical, recognise, recognised_as
from llmtrain.data.formats.labels import LABELS, label_of
from llmtrain.data.formats.messages import Conversation, Dialogue, answered, first_question, shown
from llmtrain.data.formats.naming import Naming
from llmtrain.data.formats.read import FormatReader, iter_rows, read_examples
from llmtrain.data.formats.row_formats import CHOICE, RowFormat
from llmtrain.data.formats.weights import row_weight
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.rows import Row, has_field, value_at
from llmtrain.system.typing import Report


@dataclass(frozen=True)
class Labelled:
    """A conversation whose last message is labelled."""

    conversation: Conversation
    desirable: bool
    group: str  # the first human turn: what the same question has in common
    weight: float = 1.0  # of the row in the loss

    @property
    def where(self) -> str:
        return self.conversation.where

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
    return read_examples(source, label_reader(source), on_bad_row, ledger, report, unit="answer")


def label_reader(source: Source) -> Callable[[Row], FormatReader[Labelled]]:
    """How the rows of a source are read whose first row is given. Raises ValueError for unknown names in `fields`."""
    names = Naming.of(source, LABELS[0])
    check_canonical(names.fields, source.path)
    return partial(_reader, source, names)


def _reader(source: Source, names: Naming, row: Row) -> FormatReader[Labelled]:
    row_format = recognise(_unlabelled(row, _label_field(row, source)), names)
    return FormatReader(
        f"labelled {row_format.name}",
        partial(_labelled, row_format, source, names),
        partial(_described, row_format, names),
    )


def _labelled(row_format: RowFormat, source: Source, names: Naming, row: Row) -> list[Labelled]:
    """A row's one answer; raises UnfitRow, UnwantedRow, UnicodeEncodeError, RecursionError."""
    label, unlabelled = _without_label(row, source)
    view = names.view(unlabelled.fields)
    weight = row_weight(view)
    dialogue = row_format.convert(view)
    if not isinstance(dialogue, Dialogue):
        raise UnfitRow("no answer", "a text, or ids alone, have no answer that the label could be of")
    if dialogue.messages[-1]["role"] != "assistant" or len(dialogue.messages) < 2:
        raise UnfitRow("does not end with an answer", "the last message is not an answer to one before it")
    conversation = answered(dialogue, dialogue.num_prompt or len(dialogue.messages) - 1, row.where)
    return [Labelled(conversation, label, first_question(dialogue.messages), weight)]


def _label_field(row: Row, source: Source) -> str | None:
    """The field that has a row's label; None: there is none. A pair has none, whatever its row is labelled as."""
    if LABELS[0] in source.fields:
        return source.fields[LABELS[0]] if has_field(row.fields, source.fields[LABELS[0]]) else None
    is_pair = row.fields.keys() >= CHOICE
    given = [name for name in LABELS if row.fields.get(name) is not None]
    given += [] if given or is_pair else [name for name in LABELS if name in row.fields]  # null in this row
    return next((name for name in given if not is_pair or isinstance(row.fields[name], bool)), None)


def _without_label(row: Row, source: Source) -> tuple[bool, Row]:
    """A row's label, and the row without it. Raises UnfitRow where it has none, or one that is neither good nor bad."""
    name = _label_field(row, source)
    value = None if name is None else value_at(row.fields, name)
    if value is None:
        raise UnfitRow("no label", f"no field is true or false ({', '.join(LABELS)}), so the answer has no label")
    label = label_of(value)
    if label is None:
        raise UnfitRow(
            "unknown label",
            f"{name!r} holds {value!r}, which does not say whether the answer is desirable: give true or false, 1 or "
            "0, yes or no",
        )
    return label, _unlabelled(row, name)


def _unlabelled(row: Row, label_field: str | None) -> Row:
    return Row({name: value for name, value in row.fields.items() if name != label_field}, row.where)


def _described(row_format: RowFormat, names: Naming, first: Labelled) -> str:
    """What was recognised, and one row of it, on one line."""
    label = "desirable" if first.desirable else "undesirable"
    return f"labelled {recognised_as(row_format, names)}; the first, {label}: {shown(first.conversation.messages)}"
