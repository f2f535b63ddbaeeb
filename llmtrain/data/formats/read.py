"""A source of rows -> examples: the one loop that reads rows of every kind.

source -> rows -> the format of the source, recognised once -> examples, each entered in the ledger. `instructions`,
`preferences`, `labelled` and `prompts` say which formats there are and what an example of theirs is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from llmtrain.config.data import OnBadRow, Source
from llmtrain.data.formats.faults import UnfitRow, UnknownFormat, UnwantedRow
from llmtrain.data.formats.media import media_notes, require_text_alone
from llmtrain.data.formats.naming import Naming
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.files import Files, resolve_rows
from llmtrain.data.sources.items import iter_items
from llmtrain.data.sources.rows import BadRow, IsRow, Row, Rows, Wanted
from llmtrain.data.sources.text import Document
from llmtrain.system.typing import Report


class Counted(Protocol):
    """What the ledger counts."""

    @property
    def num_bytes(self) -> int: ...


ExampleType = TypeVar("ExampleType", bound=Counted)

UNKNOWN_FORMAT = "unknown format"
"""Why a row is bad whose fields no format recognises."""


@dataclass(frozen=True)
class Dropped:
    """A row, or a part of one, that is valid but not used."""

    reason: str  # one of a few, for counting
    num_bytes: int


@dataclass(frozen=True)
class FormatReader(Generic[ExampleType]):
    """How the rows of one source are read, now that their format is known."""

    name: str  # of the format, for the ledger and messages
    convert: Callable[[Row], Sequence[ExampleType | Dropped]]  # raises UnfitRow, UnwantedRow
    describe: Callable[[ExampleType], str]  # the format and a first example, on one line


@dataclass(frozen=True)
class ReadRow(Generic[ExampleType]):
    """A row of a source, and what became of it."""

    row: Row | BadRow  # as the source has it
    found: Sequence[ExampleType | Dropped] | BadRow
    reader: FormatReader[ExampleType] | None  # what read it, or would have

    @property
    def examples(self) -> list[ExampleType]:
        """What of it is used."""
        if isinstance(self.found, BadRow):
            return []
        return [example for example in self.found if not isinstance(example, Dropped)]

    @property
    def fault(self) -> str | None:
        """Why nothing of it is used; None: something is."""
        if isinstance(self.found, BadRow):
            return self.found.reason
        reasons = [example.reason for example in self.found if isinstance(example, Dropped)]
        return None if self.examples else next(iter(reasons), "holds nothing")


def read_examples(
    source: Source,
    recognise: Callable[[Row], FormatReader[ExampleType]],
    on_bad_row: OnBadRow,
    ledger: SourceLedger,
    report: Report,
    *,
    unit: str,
) -> Iterator[ExampleType]:
    """The examples of a source; all else is entered in the ledger, where the caller enters what becomes of examples.

    The first row that gives an example decides the format of the source, which is reported together with it; `unit`
    is the word for an example. Raises ValueError, one line, for a source that is missing, empty or unreadable, where
    several formats fit, and, unless `on_bad_row` is skip, for a row that is bad or in no known format.
    """
    is_reported = False
    first_fault = ""
    names, unheard = Naming.of(source), {name.strip().lower() for name in source.roles}
    for read in read_rows(source, recognise, ledger):
        if unheard and isinstance(read.row, Row):
            unheard -= names.heard(read.row.fields)
        found = read.found
        if isinstance(found, BadRow):
            if on_bad_row == "error":
                fix = "" if found.reason == UNKNOWN_FORMAT else "; fix the row, or set data.on_bad_row=skip"
                raise ValueError(f"{found.message}{fix}")
            first_fault = first_fault or f"; {found.message}"
            ledger.bad_row(found.reason, found.num_bytes)
            continue
        if isinstance(read.row, Row) and read.examples:
            ledger.note(media_notes(read.row.fields))
        for example in found:
            ledger.read.add(example.num_bytes)
            if isinstance(example, Dropped):
                ledger.drop(example.reason, example.num_bytes)
                continue
            if not is_reported and read.reader is not None:
                is_reported, ledger.row_format = True, read.reader.name
                report(f"{source.path}: {read.reader.describe(example)}")
            yield example
    if unheard:
        report(
            f"{source.path}: warning: roles: no message is of {', '.join(sorted(unheard))}: misspelt, or leave it out"
        )
    if not is_reported:
        raise ValueError(f"{source.path}: no {unit} to train on ({_what_was_read(ledger)}){first_fault}")


def read_rows(
    source: Source, recognise: Callable[[Row], FormatReader[ExampleType]], ledger: SourceLedger | None = None
) -> Iterator[ReadRow[ExampleType]]:
    """Every row of a source with what became of it; the ledger gets the account of the files alone.

    The first row that gives an example decides the format of the source. Raises ValueError, one line, for a source that
    is missing, empty or unreadable, and where several formats fit.
    """
    reader: FormatReader[ExampleType] | None = None
    for row in iter_rows(source, partial(_is_recognised, recognise), ledger):
        if isinstance(row, BadRow):
            yield ReadRow(row, row, reader)
            continue
        try:
            found = _converted(row, reader, recognise)
        except UnknownFormat as fault:
            found = BadRow(UNKNOWN_FORMAT, str(fault), row_bytes(row))
        if isinstance(found, BadRow):
            yield ReadRow(row, found, reader)
            continue
        row_reader, examples = found
        if reader is None and any(not isinstance(example, Dropped) for example in examples):
            reader = row_reader
        yield ReadRow(row, examples, row_reader)


def iter_rows(source: Source, is_row: IsRow, ledger: SourceLedger | None = None) -> Rows:
    """Every row and bad row of a source, in order; its files are entered in the ledger.

    Raises ValueError if there are no files of rows, or one cannot be read.
    """
    location = resolve_rows(source)
    if ledger is not None and isinstance(location, Files):
        ledger.files = len(location.paths)
        ledger.files_not_read = dict(location.not_read)
    for item in iter_items(source, location, Wanted(is_row)):
        assert not isinstance(item, Document), item.where
        yield item


def _is_recognised(recognise: Callable[[Row], object], row: Row) -> bool:
    """Whether a row is in a known format, so that a list in it is a part of the row."""
    try:
        recognise(row)
    except ValueError:
        return False
    return True


def row_bytes(row: Row) -> int:
    """The bytes of a row written as JSON."""
    return len(json.dumps(row.fields, ensure_ascii=False, default=str).encode(errors="surrogatepass"))


def _converted(
    row: Row, reader: FormatReader[ExampleType] | None, recognise: Callable[[Row], FormatReader[ExampleType]]
) -> tuple[FormatReader[ExampleType], Sequence[ExampleType | Dropped]] | BadRow:
    """A row's examples, and what read them: `reader`, or where there is none yet, the one of the row's own format."""
    known = ""
    try:
        row_reader = reader or recognise(row)
        known = f" (read as {row_reader.name})"
        require_text_alone(row.fields)
        return row_reader, row_reader.convert(row)
    except UnwantedRow as unwanted:
        return row_reader, [Dropped(unwanted.reason, row_bytes(row))]
    except (UnfitRow, UnicodeEncodeError) as fault:
        if (broken := _half_a_pair(row)) is not None:  # whatever a template or tokenizer said of it
            message = f"{row.where}: a string holds {broken}, half a surrogate pair, which is not valid Unicode"
            return BadRow("invalid UTF-8", message, row_bytes(row))
        if not isinstance(fault, UnfitRow):
            raise
        return BadRow(fault.reason, f"{row.where}: {fault}{known}", row_bytes(row))
    except RecursionError:
        return BadRow("nested too deep", f"{row.where}: the row is nested too deep", 0)


def _half_a_pair(row: Row) -> str | None:
    r"""The first half of a surrogate pair in a row, as in `\ud800`; None if its strings are valid Unicode."""
    try:
        json.dumps(row.fields, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        character: str = error.object[error.start : error.start + 1]
        return character.encode("unicode_escape").decode()
    return None


def _what_was_read(ledger: SourceLedger) -> str:
    """The account of a source without examples."""
    counts = {**{f"bad: {reason}": tally for reason, tally in ledger.bad_rows.items()}, **ledger.dropped}
    return f"{ledger.read.documents} read" + "".join(f", {tally.documents} {why}" for why, tally in counts.items())
