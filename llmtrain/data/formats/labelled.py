"""A source of answers that are judged one by one -> conversations, each with its judgement, all accounted for.

A row is what instruction tuning reads (`row_formats`), of which the last answer is judged, and a field that is true
where that answer is desirable (KTO: Ethayarajh et al. 2024). The rest is as `preferences.iter_preferences` does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from llmtrain.config.sections import Source
from llmtrain.data.formats.conversations import Conversation, row_bytes, row_files
from llmtrain.data.formats.instructions import RowFormat, check_canonical, recognise, renamed
from llmtrain.data.formats.messages import UnfitRow, UnwantedRow, shortened
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_items
from llmtrain.data.sources.files import Files, resolve
from llmtrain.data.sources.readers import BadRow, Row

LABELS = ("label", "kto_tag")
"""Fields that may say whether an answer is desirable."""


@dataclass(frozen=True)
class Judged:
    """A conversation whose last message is judged."""

    conversation: Conversation
    desirable: bool
    group: str  # the first human turn: what the same question has in common

    def digest(self) -> bytes:
        """16 bytes that stand for the question alone, so that all its answers fall into the same split."""
        return blake2b(self.group.encode(), digest_size=16).digest()


def holds_judgements(source: Source) -> bool:
    """Whether the first good row of a source has a label. Raises ValueError for a source that is not there."""
    for item in _items(source):
        if isinstance(item, Row):
            return _label_field(item, source) is not None
    return False


def iter_judged(
    source: Source, on_bad_row: Literal["error", "skip"], ledger: SourceLedger, say: Callable[[str], None]
) -> Iterator[Judged]:
    """The judged answers of a source; all else is counted in the ledger, where the caller counts what is yielded.

    `say` is called once, with the format that was recognised and its first row. Raises ValueError, one line, for a
    source that is empty or unreadable, for a row that is bad (unless `on_bad_row` is skip), and where no format, or
    more than one, is recognised.
    """
    fields = {name: field for name, field in source.fields.items() if name != LABELS[0]}
    check_canonical(fields, source.path)
    row_format: RowFormat | None = None
    first_fault = ""
    for item in _items(source, ledger):
        form = row_format
        read: Judged | BadRow
        if isinstance(item, BadRow):
            read = item
        else:
            label, unlabelled = _without_label(item, source)
            form = row_format or recognise(unlabelled, fields)
            read = _read(unlabelled, label, form, fields)
        if isinstance(read, BadRow):
            if on_bad_row == "error":
                raise ValueError(f"{read.message}; mend it, or set data.on_bad_row=skip")
            first_fault = first_fault or f"; {read.message}"
            ledger.bad_row(read.reason, read.num_bytes)
            continue
        if row_format is None:
            assert form is not None
            row_format, ledger.row_format = form, f"judged {form.name}"
            say(f"{source.path}: {_described(form, read)}")
        ledger.read.add(read.conversation.num_bytes)
        yield read
    if row_format is None:
        raise ValueError(f"{source.path}: no answer to train on ({ledger.read.documents} read){first_fault}")


def _items(source: Source, ledger: SourceLedger | None = None) -> Iterator[Row | BadRow]:
    location = resolve(source)
    if isinstance(location, Files):
        location = row_files(source, location)
        if ledger is not None:
            ledger.files = len(location.paths)
            ledger.files_not_read = dict(location.not_read)
    for item in iter_items(source, location):
        assert isinstance(item, Row | BadRow), item
        yield item


def _label_field(row: Row, source: Source) -> str | None:
    names = [source.fields[LABELS[0]]] if LABELS[0] in source.fields else LABELS
    return next((name for name in names if isinstance(row.fields.get(name), bool)), None)


def _without_label(row: Row, source: Source) -> tuple[bool | None, Row]:
    """A row's label, None where it has none, and the row without it."""
    name = _label_field(row, source)
    rest = {field: value for field, value in row.fields.items() if field != name}
    return None if name is None else bool(row.fields[name]), Row(rest, row.where)


def _read(row: Row, label: bool | None, form: RowFormat, fields: dict[str, str]) -> Judged | BadRow:
    try:
        if label is None:
            raise UnfitRow("no label", "no field says true or false of the answer (label, kto_tag)")
        said = form.convert(renamed(row.fields, fields))
        if isinstance(said, str):
            raise UnfitRow("no answer", "a text alone has no answer to judge")
        if said.messages[-1]["role"] != "assistant" or len(said.messages) < 2:
            raise UnfitRow("does not end with an answer", "the last message is no answer to one before it")
        asked = next((message for message in said.messages if message["role"] == "user"), said.messages[0])
        num_bytes = len(json.dumps([said.messages, said.tools], ensure_ascii=False).encode())
    except (UnfitRow, UnwantedRow) as fault:
        return BadRow(fault.reason, f"{row.where}: {fault} (read as judged {form.name})", row_bytes(row))
    except UnicodeEncodeError:
        message = f"{row.where}: a string holds half a surrogate pair, which is not valid Unicode"
        return BadRow("invalid UTF-8", message, row_bytes(row))
    except RecursionError:
        return BadRow("nested too deep", f"{row.where}: the row is nested too deep", 0)
    num_prompt = said.num_prompt or len(said.messages) - 1
    conversation = Conversation(tuple(said.messages), num_prompt, said.tools, row.where, num_bytes)
    return Judged(conversation, label, asked["content"].strip())


def _described(form: RowFormat, first: Judged) -> str:
    """What was recognised, and one row of it, on one line."""
    *_, asked, answer = first.conversation.messages
    verdict = "desirable" if first.desirable else "undesirable"
    shown = f"{asked['role']} {shortened(asked['content'])} -> {verdict} {shortened(answer['content'])}"
    return f"judged {form.name} rows (fields {', '.join(form.chosen_by.values())} and a label); the first: {shown}"
