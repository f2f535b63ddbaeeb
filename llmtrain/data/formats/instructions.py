"""Instruction rows -> what they become: conversations, plain texts, ids.

A format is recognised by the names of a row's fields, and by what they hold where names alone do not decide;
`row_formats` is the table of formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

from llmtrain.config.data import OnBadRow, Source
from llmtrain.data.formats.faults import UnfitRow, UnknownFormat, UnwantedRow, field_names, masked_quote
from llmtrain.data.formats.labels import LABELS, label_of
from llmtrain.data.formats.messages import Conversation, Dialogue, conversation, shown
from llmtrain.data.formats.naming import Naming
from llmtrain.data.formats.read import Dropped, FormatReader, read_examples
from llmtrain.data.formats.roles import speaker_of_row
from llmtrain.data.formats.row_formats import CANONICAL, CHOICE, FINDERS, RowFormat
from llmtrain.data.formats.token_rows import TokenRow
from llmtrain.data.formats.weights import row_weight, weight_note, without_weights
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.rows import Fields, Row, has_field
from llmtrain.data.sources.weight_values import NOT_TRAINED, WEIGHT
from llmtrain.system.typing import Report


@dataclass(frozen=True)
class PlainText:
    """A text that is trained on unchanged."""

    text: str
    where: str  # file:line, for messages to the user
    num_bytes: int  # as UTF-8
    weight: float = 1.0  # of its tokens in the loss

    def digest(self) -> bytes:
        """16 bytes that depend on the text alone."""
        return blake2b(self.text.encode(), digest_size=16).digest()


Example = Conversation | PlainText | TokenRow
SHOWN_IDS = 8
OF_THE_ROW = {"weight"}
"""Names that a source's `fields` may map in every format."""
TEXT = {"text": "text"}
"""The fields of a row that is a text alone."""


def iter_examples(source: Source, on_bad_row: OnBadRow, ledger: SourceLedger, report: Report) -> Iterator[Example]:
    """The conversations and texts of a source, read as `read_examples` does; blank texts are dropped."""
    return read_examples(source, chat_reader(source), on_bad_row, ledger, report, unit="row")


def chat_reader(source: Source) -> Callable[[Row], FormatReader[Example]]:
    """How the rows of a source are read whose first row is given. Raises ValueError for unknown names in `fields`."""
    check_canonical(source.fields, source.path)
    return partial(_reader, Naming.of(source))


def check_canonical(fields: Mapping[str, str], path: str) -> None:
    """Raises ValueError if a source's `fields` maps a name that no format has."""
    for name in fields:
        if name not in CANONICAL:
            raise ValueError(
                f"{path}: the source's fields maps {name!r}, which is none of the names it may map: "
                f"{', '.join(CANONICAL)}"
            )


def fields_read(row_format: RowFormat, fields: Mapping[str, str]) -> dict[str, str]:
    """Canonical name -> field of the row, of what a format reads."""
    return {name: fields.get(field, field) for name, field in row_format.chosen_by.items()}


def _reader(names: Naming, row: Row) -> FormatReader[Example]:
    row_format = without_bad_answers(recognise(row, names), names.view(row.fields))
    notes = [note for note in (weight_note(names.view(row.fields)), names.note(row.fields)) if note]
    described = partial(_described, row_format, names, notes)
    return FormatReader(row_format.name, partial(_examples, row_format, names), described)


def _examples(row_format: RowFormat, names: Naming, row: Row) -> list[Example | Dropped]:
    """A row's one example, or why it is dropped; raises UnfitRow, UnwantedRow, UnicodeEncodeError, RecursionError."""
    view = names.view(row.fields)
    weight = row_weight(view)
    found = row_format.convert(view)
    if isinstance(found, TokenRow):
        return [replace(found, where=row.where, weight=weight)]
    if isinstance(found, str):
        text = PlainText(found, row.where, len(found.encode()), weight)
        return [text if found.strip() else Dropped("empty", text.num_bytes)]
    if all(message["role"] != "assistant" for message in found.messages):
        raise UnfitRow("no assistant turn", "no message is the assistant's")
    if all(message.get(WEIGHT) == 0 for message in found.messages if message["role"] == "assistant"):
        raise UnwantedRow(NOT_TRAINED)
    num_bytes = _num_bytes(found.tools)
    for message in without_weights(found.messages):
        num_bytes += sum(_num_bytes(value) for key, value in message.items() if key != "role")
    return [conversation(found, found.num_prompt, row.where, num_bytes, weight)]


def without_bad_answers(row_format: RowFormat, first: Fields) -> RowFormat:
    """A format of a source whose answers may be labelled, as KTO takes them: those that are bad are not trained.

    That is what true and false say of an answer, and whatever is in `kto_tag`; of a source whose first row says it so,
    any other word for it too. Other labels (0, "positive", those of a text) may be a class: a note says that they are
    not read.
    """
    name, is_text = next((name for name in LABELS if first.get(name) is not None), None), row_format.chosen_by == TEXT
    value = None if name is None else first[name]
    if first.keys() >= CHOICE or (name is None and is_text) or (name is not None and label_of(value) is None):
        return row_format
    if name is not None and (is_text or not _says_so(name, value)):
        note = f"the field {name} ({value!r}) is not read: if it says whether an answer is good, write true and false"
        return replace(row_format, note="; ".join(filter(None, [row_format.note, note])))

    def convert(row: Fields) -> Dialogue | TokenRow | str:
        for each in LABELS:
            if label_of(row.get(each)) is False and (each == name or _says_so(each, row[each])):
                raise UnwantedRow(f"{each} is false")
        return row_format.convert(row)

    notes = [row_format.note, *([] if name is None else [f"rows whose {name} is false are dropped"])]
    return replace(row_format, convert=convert, note="; ".join(filter(None, notes)))


def _says_so(name: str, value: Any) -> bool:
    """Whether a label says if an answer is good, and cannot be a class."""
    return name != LABELS[0] or isinstance(value, bool) or str(value).strip().lower() in ("true", "false")


def _num_bytes(tree: Any) -> int:
    """The UTF-8 bytes of every string in a tree, keys included; raises UnicodeEncodeError."""
    if isinstance(tree, str):
        return len(tree.encode())
    if isinstance(tree, Mapping):
        return sum(_num_bytes(key) + _num_bytes(value) for key, value in tree.items())
    return sum(map(_num_bytes, tree)) if isinstance(tree, list | tuple) else 0


def _described(row_format: RowFormat, names: Naming, notes: Sequence[str], example: Example) -> str:
    """What was recognised, and one example of it, on one line."""
    return "; ".join([recognised_as(row_format, names), *notes, f"the first: {first_shown(example)}"])


def first_shown(example: Example) -> str:
    """An example on one line, shortened."""
    match example:
        case PlainText():
            return masked_quote(example.text)
        case TokenRow():
            return f"{len(example.ids)} ids, {', '.join(map(str, example.ids[:SHOWN_IDS]))}, ..."
        case Conversation():
            return shown(example.messages)


def recognised_as(row_format: RowFormat, names: Naming) -> str:
    """The name of a format, the fields of the row that it reads, and what the user should know of it."""
    parts = [f"{row_format.name} rows (fields {', '.join(fields_read(row_format, names.fields).values())})"]
    return "; ".join([*parts, row_format.note] if row_format.note else parts)


def recognise(row: Row, names: Naming) -> RowFormat:
    """The one format that a row is in, read as a source names things.

    Raises UnknownFormat where the row is in none, and ValueError where it is in several or the source's `fields` maps a
    field that the row lacks; the message says which `fields` to set.
    """
    fields = names.fields
    for name, field in fields.items():
        if not has_field(row.fields, field):
            raise ValueError(
                f"{row.where}: no field {field!r} (mapped by {_braced({name: field})}), only {field_names(row)}"
            )
    view = names.view(row.fields)
    # A column that other rows need may hold null here; it names the format only where nothing else does.
    filled = {name: value for name, value in view.items() if value is not None}
    found = _formats(filled, fields) or _formats(view, fields)
    if len(found) > 1:
        found = [found_format for found_format in found if not _is_rendering(found_format, found, view)]
    speaker = speaker_of_row(view)
    if speaker is not None and "text" not in fields and all(each.chosen_by == TEXT for each in found):
        raise UnknownFormat(
            f"{row.where}: rows of single messages (text, here by {speaker!r}) are not read, only whole conversations "
            "and trees: put the messages of each into one row, or set the source's fields to {text: text} for texts"
        )
    if len(found) == 1:
        return found[0]
    if found:
        choices = "; ".join(f"{choice.name} by {_braced(fields_read(choice, fields))}" for choice in found)
        raise ValueError(
            f"{row.where}: the row is in {len(found)} formats; choose one by the source's fields: {choices}"
        )
    mapped = f" with {_braced(fields)}" if fields else ""
    raise UnknownFormat(
        f"{row.where}: no format of instruction data is recognised by the fields {field_names(row)}{mapped}; name them "
        "by the source's fields, such as {prompt: FIELD, completion: FIELD}, {messages: FIELD} or {text: FIELD}"
    )


def _formats(row: Fields, fields: Mapping[str, str]) -> list[RowFormat]:
    """The formats that a row is in and that use every field which the source's `fields` maps."""
    found = [found_format for find in FINDERS for found_format in find(row)]
    chosen_by = set(fields) - OF_THE_ROW
    return [found_format for found_format in found if chosen_by <= set(found_format.chosen_by.values())]


def _is_rendering(this: RowFormat, found: Sequence[RowFormat], row: Fields) -> bool:
    """Whether a text row's text only repeats the answer that another format of the row separates from its prompt."""
    if this.chosen_by != {"text": "text"} or not isinstance(row["text"], str):
        return False
    try:
        others = [other.convert(row) for other in found if other is not this]
    except (UnfitRow, UnwantedRow):
        return False
    return all(isinstance(other, Dialogue) and other.messages[-1]["content"] in row["text"] for other in others)


def _braced(fields: Mapping[str, str]) -> str:
    """As YAML writes it."""
    return "{" + ", ".join(f"{name}: {field}" for name, field in fields.items()) + "}"
