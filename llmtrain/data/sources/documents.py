"""A source -> its documents, one at a time, each byte accounted for in the ledger.

A text file is one document; of anything else, each row is one, its text in one field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from llmtrain.config.data import OnBadRow, Source
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.files import Files, resolve
from llmtrain.data.sources.items import iter_items
from llmtrain.data.sources.rows import BadRow, Row, Wanted, has_field, value_at
from llmtrain.data.sources.text import Document
from llmtrain.data.sources.weight_values import NOT_TRAINED, ROW_KEYS, text_weights

TEXT_FIELDS = ("text", "content", "extract", "body", "document", "article", "passage", "raw_content")
"""Fields that are taken for the text where the source names none."""
END_MARKERS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eos|>",
    "<eos>",
    "</s>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""How well-known tokenizers spell the end of a document, as dumps of texts have it between them."""


def iter_documents(source: Source, on_bad_row: OnBadRow, ledger: SourceLedger) -> Iterator[Document]:
    """The documents of a source that have text; everything else is counted in the ledger.

    Raises ValueError, one line, for a source that is missing, empty or unreadable, for a row that is bad
    (unless `on_bad_row` is skip), and where no field, or more than one, can be taken for the text.
    """
    location = resolve(source)
    if isinstance(location, Files):
        ledger.files = len(location.paths)
        ledger.files_not_read = dict(location.not_read)
    num_documents, first_fault = 0, ""
    for item in iter_items(source, location, _wanted(source)):
        untrained = False
        if isinstance(item, Row):
            field = ledger.text_field or source.text_field or recognise_text(item)
            if isinstance(field, str):
                ledger.text_field = field
                untrained = 0.0 in text_weights(item.fields).values()
                item = row_document(item, field)
            else:
                item = field
        if isinstance(item, BadRow):
            if on_bad_row == "error":
                raise ValueError(f"{item.message}; fix the row, or set on_bad_row=skip (of `data`, in a recipe)")
            first_fault = first_fault or f"; {item.message}"
            ledger.bad_row(item.reason, item.num_bytes)
            continue
        ledger.read.add(item.num_bytes)
        if untrained:
            ledger.drop(NOT_TRAINED, item.num_bytes)
            continue
        if isinstance(item.text, str) and (not item.text or item.text.isspace()):
            ledger.drop("empty", item.num_bytes)
            continue
        num_documents += 1
        _count_end_markers(item, ledger)
        yield item
    if not num_documents:
        raise ValueError(f"{source.path}: no document with text ({_what_was_read(ledger)}){first_fault}")


def iter_texts(path: str) -> Iterator[str]:
    """Every string in files of any kind that is read, whatever its field: what evaluation files hold.

    Raises ValueError as `iter_documents` does; bad rows are errors.
    """
    source = Source(path=path, split="all")
    for item in iter_items(source, resolve(source), Wanted(lambda row: True)):
        if isinstance(item, BadRow):
            raise ValueError(item.message)
        if isinstance(item, Row):
            yield from strings_of(item.fields)
        else:
            yield "".join(item.pieces())


def strings_of(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from strings_of(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from strings_of(value)


def row_document(row: Row, text_field: str) -> Document | BadRow:
    """The text that a field of a row holds."""
    try:
        text = value_at(row.fields, text_field)
    except KeyError:
        message = f"{row.where}: no field {text_field!r}, only {_names(row.fields)}"
        return BadRow("no text field", message, 0)
    weights = text_weights(row.fields)
    if set(weights.values()) not in (set(), {0}, {1}):
        shown = " and ".join(f"{key}={row.fields[key]!r}" for key in weights)
        message = (
            f"{row.where}: the row has {shown}, and rows of text are used whole (1, true) or not at all (0, false): a "
            "source has a weight, and rows of `llmtrain sft` do"
        )
        return BadRow("weight of a text", message, 0)
    if not isinstance(text, str):
        message = f"{row.where}: field {text_field!r} holds {type(text).__name__}, not a string"
        return BadRow("text is not a string", message, 0)
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        message = f"{row.where}: field {text_field!r} is not valid Unicode at character {error.start}"
        return BadRow("invalid UTF-8", message, len(text.encode(errors="surrogatepass")))
    return Document(text, row.where, num_bytes)


def _wanted(source: Source) -> Wanted:
    """Rows with a text; of a table, the column of the text, or those that may be it."""
    field = source.text_field
    columns = TEXT_FIELDS if field is None else (field, field.partition(".")[0])
    return Wanted(partial(_has_text, source), columns, ROW_KEYS)


def _has_text(source: Source, row: Row) -> bool:
    """Whether an object has a text, so that a list in it holds parts of it, such as comments, not the source's rows."""
    if source.text_field is not None:
        return has_field(row.fields, source.text_field)
    return any(isinstance(row.fields.get(name), str) for name in TEXT_FIELDS)


def recognise_text(row: Row) -> str | BadRow:
    """The one field of a row that is known to hold text. Raises ValueError if there are several."""
    known = [name for name in TEXT_FIELDS if isinstance(row.fields.get(name), str)]
    if len(known) == 1:
        return known[0]
    choose = f"set the source's text_field to one of {_names(row.fields)}"
    if known:
        raise ValueError(f"{row.where}: fields {' and '.join(known)} could each be the text; {choose}")
    empty = next((name for name in TEXT_FIELDS if name in row.fields), None)
    if empty is not None:
        return row_document(row, empty)  # type: ignore[return-value]  # it is no string
    return BadRow("no text field", f"{row.where}: no field is known to hold the text; {choose}", 0)


def _count_end_markers(document: Document, ledger: SourceLedger) -> None:
    chunks = [document.text] if isinstance(document.text, str) else document.text.chunks()
    for chunk in chunks:
        for marker in END_MARKERS:
            if marker in chunk:
                ledger.end_markers[marker] = ledger.end_markers.get(marker, 0) + chunk.count(marker)


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, fields)) or "none"


def _what_was_read(ledger: SourceLedger) -> str:
    """The account of a source without documents, for the message."""
    bad = sum(tally.documents for tally in ledger.bad_rows.values())
    untrained = ledger.dropped[NOT_TRAINED].documents if NOT_TRAINED in ledger.dropped else 0
    empty = ledger.read.documents - bad - untrained
    what = [f"{bad} bad", *([f"{untrained} left out, as their {NOT_TRAINED}"] if untrained else []), f"{empty} empty"]
    return f"{ledger.read.documents} read, of which {', '.join(what[:-1])} and {what[-1]}"
