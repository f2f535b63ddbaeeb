"""A source -> its documents, one at a time, each byte accounted for in the ledger.

A text file is one document; of anything else, each row is one, its text in one field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmtrain.config.sections import OnBadRow, Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.files import Files, HubDataset, file_kind, resolve
from llmtrain.data.sources.readers import (
    TEXT_SUFFIXES,
    WHOLE,
    BadRow,
    Row,
    Slice,
    bounds,
    parse_slice,
    read_hub,
    read_rows,
    readable,
)
from llmtrain.data.sources.text import LARGE_CHARS, Document, FileText, InvalidUtf8, decoded_chunks

TEXT_FIELDS = ("text", "content", "extract", "body", "document", "article", "passage", "raw_content")
"""Fields that are taken for the text where the source names none."""


def iter_documents(source: Source, on_bad_row: OnBadRow, ledger: SourceLedger) -> Iterator[Document]:
    """The documents of a source that have text; everything else is counted in the ledger.

    Raises ValueError, one line, for a source that is missing, empty or unreadable, for a row that is bad
    (unless `on_bad_row` is skip), and where no field, or more than one, can be taken for the text.
    """
    location = resolve(source)
    if isinstance(location, Files):
        ledger.files = len(location.paths)
        ledger.files_not_read = dict(location.not_read)
    num_documents = 0
    for item in iter_items(source, location):
        if isinstance(item, Row):
            if ledger.text_field is None:
                ledger.text_field = source.text_field or _recognise(item)
            item = _row_document(item, ledger.text_field)
        if isinstance(item, BadRow):
            if on_bad_row == "error":
                raise ValueError(f"{item.message}; fix the row, or set on_bad_row=skip (of `data`, in a recipe)")
            ledger.bad_row(item.reason, item.num_bytes)
            continue
        ledger.read.add(item.num_bytes)
        if isinstance(item.text, str) and (not item.text or item.text.isspace()):
            ledger.drop("empty", item.num_bytes)
            continue
        num_documents += 1
        yield item
    if not num_documents:
        raise ValueError(f"{source.path}: no document with text ({_what_was_read(ledger)})")


def iter_texts(path: str) -> Iterator[str]:
    """Every string in files of any kind that is read, whatever its field: what evaluation files hold.

    Raises ValueError as `iter_documents` does; bad rows are errors.
    """
    source = Source(path=path, split="all")
    for item in iter_items(source, resolve(source)):
        if isinstance(item, BadRow):
            raise ValueError(item.message)
        if isinstance(item, Row):
            yield from _strings(item.fields)
        else:
            yield "".join(item.pieces())


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _strings(value)


def iter_items(source: Source, location: Files | HubDataset) -> Iterator[Document | Row | BadRow]:
    """Every text file, row and bad row of a source, in order."""
    if isinstance(location, HubDataset):
        yield from read_hub(source, location.name, location.commit)
        return
    part = parse_slice(source.slice)
    for path in location.paths:
        kind = file_kind(path)
        assert kind is not None, path
        if kind in TEXT_SUFFIXES:
            with readable(path):
                document = _text_document(path, part)
            yield document
        else:
            yield from read_rows(path, kind, part)


def _text_document(path: Path, part: Slice) -> Document | BadRow:
    """A text file as one document, read again for each use where it is too large to hold."""
    held: list[str] = []
    num_chars = num_bytes = 0
    try:
        for chunk in decoded_chunks(path):
            num_chars += len(chunk)
            num_bytes += len(chunk.encode())
            if num_chars <= LARGE_CHARS:
                held.append(chunk)
            else:
                held.clear()
    except InvalidUtf8 as error:
        return BadRow("invalid UTF-8", str(error), path.stat().st_size)
    start, end = bounds(num_chars, part)
    if num_chars <= LARGE_CHARS or start == end:
        text = "".join(held)[start:end]
        return Document(text, str(path), len(text.encode()))
    large = FileText(path, start, end)
    if part != WHOLE:
        num_bytes = sum(len(chunk.encode()) for chunk in large.chunks())
    return Document(large, str(path), num_bytes)


def _row_document(row: Row, text_field: str) -> Document | BadRow:
    if text_field not in row.fields:
        message = f"{row.where}: no field {text_field!r}, only {_names(row.fields)}"
        return BadRow("no text field", message, 0)
    text = row.fields[text_field]
    if not isinstance(text, str):
        message = f"{row.where}: field {text_field!r} holds {type(text).__name__}, not a string"
        return BadRow("text is not a string", message, 0)
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        message = f"{row.where}: field {text_field!r} is not valid Unicode at character {error.start}"
        return BadRow("invalid UTF-8", message, len(text.encode(errors="surrogatepass")))
    return Document(text, row.where, num_bytes)


def _recognise(row: Row) -> str:
    """The one field of a source's first row that is known to hold text."""
    known = [name for name in TEXT_FIELDS if isinstance(row.fields.get(name), str)]
    if len(known) == 1:
        return known[0]
    fault = f"fields {' and '.join(known)} could each be the text" if known else "no field is known to hold the text"
    raise ValueError(f"{row.where}: {fault}; set the source's text_field to one of {_names(row.fields)}")


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, fields)) or "none"


def _what_was_read(ledger: SourceLedger) -> str:
    """The account of a source without documents, for the message."""
    bad = sum(tally.documents for tally in ledger.bad_rows.values())
    return f"{ledger.read.documents} read, of which {bad} bad and {ledger.read.documents - bad} empty"
