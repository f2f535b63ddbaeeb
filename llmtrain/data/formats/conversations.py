"""A source of instruction data -> its conversations and plain texts, each row accounted for in the ledger.

What `rows.iter_documents` is to pretraining: the first good row says which format the source is in
(`row_formats`), and every row is read by it into one form, which a chat template turns into tokens later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from llmtrain.config.sections import Source
from llmtrain.data.formats.instructions import RowFormat, check_canonical, fields_read, recognise, renamed
from llmtrain.data.formats.messages import Message, UnfitRow, UnwantedRow, shortened
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_items
from llmtrain.data.sources.files import ROW_SUFFIXES, TEXT_SUFFIXES, Files, file_kind, resolve
from llmtrain.data.sources.readers import BadRow, Row

SHOWN_MESSAGES = 4
"""Messages of the first row that are shown."""


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them: role, content, tool_calls, name, ..."""

    messages: tuple[Message, ...]
    num_prompt: int  # messages[:num_prompt] are the prompt, where the row marks one; 0: it marks none
    tools: tuple[Mapping[str, Any], ...]
    where: str  # file:line, for messages to the user
    num_bytes: int  # as UTF-8, of all strings: contents, tool calls, tools

    def digest(self) -> bytes:
        """16 bytes that stand for the messages and tools."""
        content = json.dumps([self.messages, self.tools], sort_keys=True, default=str)
        return blake2b(content.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class PlainText:
    """A text that is trained on as it stands."""

    text: str
    where: str  # file:line, for messages to the user
    num_bytes: int  # as UTF-8

    def digest(self) -> bytes:
        """16 bytes that stand for the text."""
        return blake2b(self.text.encode(), digest_size=16).digest()


Example = Conversation | PlainText


def iter_examples(
    source: Source, on_bad_row: Literal["error", "skip"], ledger: SourceLedger, say: Callable[[str], None]
) -> Iterator[Example]:
    """The examples of a source; everything else is counted in the ledger, where the caller counts what is yielded.

    `say` is called once, with the format that was recognised and its first row. Raises ValueError, one line,
    for a source that is missing, empty or unreadable, for a row that is bad (unless `on_bad_row` is skip), and
    where no format, or more than one, is recognised.
    """
    check_canonical(source.fields, source.path)
    location = resolve(source)
    if isinstance(location, Files):
        location = row_files(source, location)
        ledger.files = len(location.paths)
        ledger.files_not_read = dict(location.not_read)
    row_format: RowFormat | None = None
    first_fault = ""
    for item in iter_items(source, location):
        assert isinstance(item, Row | BadRow), item
        form = row_format
        read: Example | BadRow | None
        if isinstance(item, BadRow):
            read = item
        else:
            form = row_format or recognise(item, source.fields)
            read = _read(item, form, source, ledger)
        if isinstance(read, BadRow):
            if on_bad_row == "error":
                raise ValueError(f"{read.message}; mend it, or set data.on_bad_row=skip")
            first_fault = first_fault or f"; {read.message}"
            ledger.bad_row(read.reason, read.num_bytes)
        elif read is not None:
            if row_format is None:
                assert form is not None
                row_format, ledger.row_format = form, form.name
                say(f"{source.path}: {_described(form, source, read)}")
            yield read
    if row_format is None:
        raise ValueError(f"{source.path}: no row to train on ({_what_was_read(ledger)}){first_fault}")


def row_files(source: Source, files: Files) -> Files:
    """The files that hold rows; texts, such as a folder's README, are passed over and counted."""
    kinds = [file_kind(path) for path in files.paths]
    kept = [index for index, kind in enumerate(kinds) if kind in ROW_SUFFIXES]
    if not kept:
        raise ValueError(
            f"{source.path}: holds text without rows; instruction data is read from {' '.join(ROW_SUFFIXES)} files"
        )
    not_read = dict(files.not_read)
    for kind in kinds:
        if kind in TEXT_SUFFIXES:
            not_read[kind] = not_read.get(kind, 0) + 1
    return Files(
        tuple(files.paths[i] for i in kept), tuple(files.names[i] for i in kept), dict(sorted(not_read.items()))
    )


def _read(row: Row, form: RowFormat, source: Source, ledger: SourceLedger) -> Example | BadRow | None:
    """A row as an example, entered as read; None: it is entered as dropped."""
    try:
        example = _example(row, form, source)
    except UnwantedRow as unwanted:
        num_bytes = row_bytes(row)
        ledger.read.add(num_bytes)
        ledger.drop(unwanted.reason, num_bytes)
        return None
    except UnfitRow as fault:
        return BadRow(fault.reason, f"{row.where}: {fault} (read as {form.name})", row_bytes(row))
    except UnicodeEncodeError as error:
        character = error.object[error.start : error.start + 1].encode("unicode_escape").decode()
        message = f"{row.where}: a string holds {character}, half a surrogate pair, which is not valid Unicode"
        return BadRow("invalid UTF-8", message, row_bytes(row))
    except RecursionError:
        return BadRow("nested too deep", f"{row.where}: the row is nested too deep", 0)
    ledger.read.add(example.num_bytes)
    if isinstance(example, PlainText) and not example.text.strip():
        ledger.drop("empty", example.num_bytes)
        return None
    return example


def _example(row: Row, form: RowFormat, source: Source) -> Example:
    """A row in its one form; raises UnfitRow, UnwantedRow, UnicodeEncodeError, RecursionError."""
    said = form.convert(renamed(row.fields, source.fields))
    if isinstance(said, str):
        return PlainText(said, row.where, len(said.encode()))
    if all(message["role"] != "assistant" for message in said.messages):
        raise UnfitRow("no assistant turn", "no message is the assistant's")
    num_bytes = _num_bytes(said.tools)
    for message in said.messages:
        num_bytes += sum(_num_bytes(value) for key, value in message.items() if key != "role")
    return Conversation(tuple(said.messages), said.num_prompt, said.tools, row.where, num_bytes)


def _num_bytes(tree: Any) -> int:
    """The UTF-8 bytes of every string in a tree, keys included; raises UnicodeEncodeError."""
    if isinstance(tree, str):
        return len(tree.encode())
    if isinstance(tree, Mapping):
        return sum(_num_bytes(key) + _num_bytes(value) for key, value in tree.items())
    return sum(map(_num_bytes, tree)) if isinstance(tree, list | tuple) else 0


def row_bytes(row: Row) -> int:
    """The bytes of a row written as JSON."""
    return len(json.dumps(row.fields, ensure_ascii=False, default=str).encode(errors="surrogatepass"))


def _described(form: RowFormat, source: Source, example: Example) -> str:
    """What was recognised, and one row of it, on one line."""
    parts = [f"{form.name} rows (fields {', '.join(fields_read(form, source.fields).values())})"]
    if form.note:
        parts.append(form.note)
    if isinstance(example, PlainText):
        return "; ".join([*parts, f"the first: {shortened(example.text)}"])
    shown = [f"{message['role']} {_shown(message)}" for message in example.messages[:SHOWN_MESSAGES]]
    if len(example.messages) > SHOWN_MESSAGES:
        shown.append(f"{len(example.messages) - SHOWN_MESSAGES} more")
    return "; ".join([*parts, f"the first: {' -> '.join(shown)}"])


def _shown(message: Message) -> str:
    if message["content"] or "tool_calls" not in message:
        return shortened(message["content"])
    return f"calls {', '.join(call['function']['name'] for call in message['tool_calls'])}"


def _what_was_read(ledger: SourceLedger) -> str:
    """The account of a source without examples."""
    counts = {**{f"bad: {reason}": tally for reason, tally in ledger.bad_rows.items()}, **ledger.dropped}
    return f"{ledger.read.documents} read" + "".join(f", {tally.documents} {why}" for why, tally in counts.items())
