"""What the rows or texts of a source can be used for: how many of them each kind of training can read, and why not.

Reads at most so many rows of a source, once for each kind, and needs no model and no tokenizer.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from llmtrain.config.data import Source
from llmtrain.data.formats.asked import Asked, asked_reader
from llmtrain.data.formats.faults import UnfitRow, UnknownFormat, masked_quote
from llmtrain.data.formats.instructions import chat_reader
from llmtrain.data.formats.labelled import Labelled, label_reader
from llmtrain.data.formats.messages import Conversation, Message, asks_nothing
from llmtrain.data.formats.preferences import Preference, pair_reader
from llmtrain.data.formats.read import Dropped, FormatReader, ReadRow, read_rows
from llmtrain.data.formats.token_rows import IDS, TokenRow, is_ids_alone, token_row
from llmtrain.data.ledger import TOKENIZED, SourceLedger
from llmtrain.data.sources.documents import iter_documents, recognise_text, row_document
from llmtrain.data.sources.files import Files, file_kind, resolve
from llmtrain.data.sources.readers import READERS
from llmtrain.data.sources.rows import BadRow, Row
from llmtrain.data.sources.text import Document

Use = Literal["pretrain", "sft", "pairs", "kto", "prompts"]
"""A kind of training, by the rows that it reads; reward models and DPO both read pairs."""
State = Literal["fits", "partly", "no"]
BYTES_PER_TOKEN = 4
"""Roughly, of English text with a vocabulary of tens of thousands; other languages and code have fewer."""
SAMPLE_ROWS = 20
MOST_TEXT_BYTES = 1 << 30
"""Of text files that are read whole."""

AnyReader = Callable[[Row], FormatReader[Any]]


@dataclass
class Fit:
    """How much of a source one kind of training can read."""

    num_rows: int = 0  # read
    num_fit: int = 0
    num_bytes: int = 0  # of text, of what fits
    described: str = ""  # the format, and the first row as it is seen
    faults: Counter[str] = field(default_factory=Counter)  # why the others do not -> how many
    num_bad: int = 0  # of them, those that would stop a run unless bad rows are skipped
    first_fault: str = ""  # one line, with file:line
    copies: Counter[str] = field(default_factory=Counter)  # where a row is that repeats an earlier one
    longest: tuple[int, str] = (0, "")  # bytes of the longest, and where it is
    sizes: list[int] = field(default_factory=list)  # bytes of each that fits

    def num_longer(self, tokens: int) -> int:
        """How many are longer than so many tokens, roughly."""
        return sum(size > tokens * BYTES_PER_TOKEN for size in self.sizes)


@dataclass(frozen=True)
class Survey:
    """What a source holds."""

    source: Source
    num_files: int | None  # None: a dataset of the hub
    not_read: Mapping[str, int]
    unit: Literal["row", "text"]
    is_whole: bool  # nothing is left after the rows that were read
    fits: Mapping[Use, Fit]
    fields: Mapping[str, str]  # of the first rows: name -> what it holds, shortened

    @property
    def num_rows(self) -> int:
        return max(fit.num_rows for fit in self.fits.values())

    def state(self, use: Use) -> State:
        """Whether most rows serve a use, some, or none; pairs serve KTO as two answers each."""
        fit = self.serving(use)
        if not fit.num_fit:
            return "no"
        return "fits" if 2 * fit.num_fit >= fit.num_rows else "partly"

    def serving(self, use: Use) -> Fit:
        """What is read for a use."""
        return self.fits["pairs"] if self.takes_pairs(use) else self.fits[use]

    def takes_pairs(self, use: Use) -> bool:
        """Whether the rows serve KTO as pairs, since they have no labels."""
        return use == "kto" and not self.fits[use].num_fit

    @property
    def main(self) -> Fit:
        """Of the first kind that most rows serve, or, if there is none, that reads most of them."""
        fits = [fit for use, fit in self.fits.items() if self.state(use) == "fits" and fit.num_fit]
        return fits[0] if fits else max(self.fits.values(), key=lambda fit: fit.num_fit)


def _text_reader(source: Source) -> AnyReader:
    """How the rows of a source are read for their text alone."""

    def recognised(row: Row) -> FormatReader[Any]:
        if source.text_field is None and is_ids_alone(row.fields):
            return FormatReader(TOKENIZED, lambda row: [token_row(row.fields, row.where)], _first_ids)
        found = source.text_field or recognise_text(row)
        if isinstance(found, BadRow):
            raise UnknownFormat(found.message)
        text_field = found

        def convert(row: Row) -> list[Document | Dropped]:
            document = row_document(row, text_field)
            if isinstance(document, BadRow):
                raise UnfitRow(document.reason, document.message.removeprefix(f"{row.where}: "))
            is_blank = isinstance(document.text, str) and not document.text.strip()
            return [Dropped("empty", document.num_bytes) if is_blank else document]

        def describe(first: Document) -> str:
            return f"text (field {text_field}); the first: {_start(first)}"

        return FormatReader("text", convert, describe)

    return recognised


READS: Mapping[Use, Callable[[Source], AnyReader]] = {
    "sft": chat_reader,
    "pairs": pair_reader,
    "kto": label_reader,
    "prompts": asked_reader,
    "pretrain": _text_reader,
}
"""Use -> how the rows of a source are read for it."""


def survey(source: Source, limit: int) -> Survey:
    """Read up to `limit` rows or texts of a source. Raises ValueError for a source that is not there, or unreadable."""
    location = resolve(source)
    paths = location.paths if isinstance(location, Files) else ()
    has_rows = not paths or any(file_kind(path, source) in READERS for path in paths)
    if has_rows:
        fits = {use: _rows(source, reader, limit) for use, reader in READS.items()}
    else:
        fits = {use: Fit(first_fault="texts, which have no rows") for use in READS}
        fits["pretrain"] = _texts(source, paths, limit)
    return Survey(
        source=source,
        num_files=len(paths) if isinstance(location, Files) else None,
        not_read=location.not_read if isinstance(location, Files) else {},
        unit="row" if has_rows else "text",
        is_whole=max(fit.num_rows for fit in fits.values()) < limit,
        fits=fits,
        fields=_fields(source) if has_rows else {},
    )


def _rows(source: Source, reader: Callable[[Source], AnyReader], limit: int) -> Fit:
    fit = Fit()
    seen: set[bytes] = set()
    try:
        for read in islice(read_rows(source, reader(source)), limit):
            fit.num_rows += 1
            _enter(fit, read, seen)
    except ValueError as error:  # several formats fit, or a field is not there
        fit.first_fault = fit.first_fault or str(error)
    return fit


def _enter(fit: Fit, read: ReadRow[Any], seen: set[bytes]) -> None:
    if read.fault is not None:
        fit.faults[read.fault] += 1
        if isinstance(read.found, BadRow):
            fit.num_bad += 1
            fit.first_fault = fit.first_fault or read.found.message
        elif isinstance(read.row, Row):
            fit.first_fault = fit.first_fault or f"{read.row.where}: {read.fault}"
        return
    assert isinstance(read.row, Row) and read.reader is not None
    if any(asks_nothing(messages) for messages in map(_messages, read.examples) if messages):
        fit.faults["no prompt"] += 1
        fit.num_bad += 1
        fit.first_fault = fit.first_fault or f"{read.row.where}: no message has text but answers: nothing is asked"
        return
    fit.num_fit += 1
    size = sum(example.num_bytes for example in read.examples)
    _measure(fit, size, read.row.where, b"".join(map(_identity, read.examples)), seen)
    fit.described = fit.described or read.reader.describe(read.examples[0])


def _measure(fit: Fit, size: int, where: str, identity: bytes, seen: set[bytes]) -> None:
    fit.num_bytes += size
    fit.sizes.append(size)
    fit.longest = max(fit.longest, (size, where))
    if identity in seen:
        fit.copies[where] += 1
    seen.add(identity)


def _messages(example: Any) -> Sequence[Message]:
    """The messages of an example; (): it is none of a chat."""
    match example:
        case Conversation():
            return example.messages
        case Preference():
            return example.chosen.messages
        case Labelled():
            return example.conversation.messages
        case Asked():
            return example.dialogue.messages
    return ()


def _identity(example: Any) -> bytes:
    """Equal for examples that are equal in all but their place."""
    if isinstance(example, Preference):
        return example.chosen.digest() + example.rejected.digest()
    if isinstance(example, Labelled):
        return example.conversation.digest() + bytes([example.desirable])
    digest: bytes = example.digest()
    return digest


def _texts(source: Source, paths: Sequence[Path], limit: int) -> Fit:
    """Files that are one text each, or several with a separator."""
    fit, ledger = Fit(), SourceLedger(path=source.path)
    num_bytes = sum(path.stat().st_size for path in paths)
    if num_bytes > MOST_TEXT_BYTES:
        return Fit(len(paths), len(paths), num_bytes, "files of text, too large to look into here")
    seen: set[bytes] = set()
    try:
        for document in islice(iter_documents(source, "skip", ledger), limit):
            fit.num_fit += 1
            _measure(fit, document.num_bytes, document.where, document.digest(), seen)
            fit.described = fit.described or f"texts; the first: {_start(document)}"
        if ledger.bad_rows:
            deque(iter_documents(source, "error", SourceLedger(path=source.path)), maxlen=0)
    except ValueError as error:
        fit.first_fault = str(error).partition("; fix the row")[0]
    fit.num_bad = sum(tally.documents for tally in ledger.bad_rows.values())
    for reason, tally in (*ledger.bad_rows.items(), *ledger.dropped.items()):
        fit.faults[reason] += tally.documents
    fit.num_rows = fit.num_fit + fit.faults.total()
    return fit


def _first_ids(first: TokenRow) -> str:
    return f"tokenized rows (field {IDS}); the first has {len(first.ids):,} ids"


def _start(document: Document) -> str:
    return masked_quote(document.text if isinstance(document.text, str) else next(iter(document.text.chunks())))


def _fields(source: Source) -> dict[str, str]:
    """The fields of the first rows with a value of each, on a line."""
    found: dict[str, str] = {}
    rows: Iterator[ReadRow[Any]] = read_rows(source, chat_reader(source.model_copy(update={"fields": {}})))
    try:
        for read in islice(rows, SAMPLE_ROWS):
            for name, value in (read.row.fields if isinstance(read.row, Row) else {}).items():
                if value is not None:
                    found.setdefault(name, masked_quote(value) if isinstance(value, str) else _kind(value))
    except ValueError:
        pass  # each kind of training says it
    return found


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}"
    return str(value)
