"""Tables -> rows: CSV, TSV, Parquet and Arrow."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from llmtrain.data.sources.compressed import open_text, seekable
from llmtrain.data.sources.rows import BadRow, Row, Rows, Wanted
from llmtrain.system.files import one_line

MAX_VALUE_CHARS = 64 << 20
"""A longer value of a CSV file is taken for a quote that was never closed."""
SAMPLE_CHARS = 1 << 20


def read_csv(path: Path, wanted: Wanted) -> Rows:
    """The rows of a CSV or TSV file whose first line names the fields; every value is a string.

    A row that is bad in several lines, because of a quote, is bad in its first alone: the others are read as rows. A
    TSV file has quotes only if all of its start reads as quoted.
    """
    is_tsv = ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]]
    with _decoded(path) as file:
        quoted = not is_tsv or _is_quoted(file.read(SAMPLE_CHARS))
    with _decoded(path) as file:
        yield from _csv_rows(_Records(file, "\t" if is_tsv else ",", quoted), path)


def _decoded(path: Path) -> TextIO:
    # Invalid bytes become lone surrogates, which make the text they are in a bad row later.
    return io.TextIOWrapper(open_text(path), encoding="utf-8-sig", errors="surrogateescape", newline="")


class _Records:
    """The records of a CSV file, with the line that each starts in; after a bad one its later lines are read again."""

    def __init__(self, file: TextIO, delimiter: str, quoted: bool) -> None:
        csv.field_size_limit(MAX_VALUE_CHARS)
        self._file = file
        self._again: deque[str] = deque()
        self._held: list[str] = []  # the lines of the record that is read now
        self._num_lines = 0  # of records before that
        self._quoted = quoted
        self._delimiter = delimiter
        self._reader = self._parser()

    def _parser(self) -> Any:
        if self._quoted:
            return csv.reader(self._lines(), delimiter=self._delimiter, strict=True)
        return csv.reader(self._lines(), delimiter=self._delimiter, strict=True, quoting=csv.QUOTE_NONE)

    def _lines(self) -> Iterator[str]:
        while line := self._again.popleft() if self._again else self._file.readline():
            self._held.append(line)
            yield line

    @property
    def line(self) -> int:
        """The line, from 1, in which the last record starts."""
        return self._num_lines + 1

    @property
    def num_held(self) -> int:
        """The lines of the last record."""
        return len(self._held)

    def advance(self) -> list[str] | None:
        """The next record; None at the end. Raises csv.Error for a malformed one."""
        self._num_lines += len(self._held)
        self._held.clear()
        return next(self._reader, None)

    def drop_line(self) -> int:
        """Give up the first line of the last record, and read the others again; its size in bytes."""
        dropped, *rest = self._held or [""]
        self._again.extendleft(reversed(rest))
        self._held = self._held[:1]
        self._reader = self._parser()
        return len(dropped.encode(errors="surrogateescape"))


def _csv_rows(records: _Records, path: Path) -> Rows:
    try:
        names = records.advance() or []
    except csv.Error as error:
        raise ValueError(f"{path}:1: the header is malformed CSV ({error})") from None
    _require_distinct(names, path)
    while True:
        try:
            values = records.advance()
        except csv.Error as error:
            where = f"{path}:{records.line}"
            quote = ", from a quote in this line" if records.num_held > 1 else ""
            yield BadRow("malformed CSV", f"{where}: malformed CSV ({error}{quote})", records.drop_line())
            continue
        if values is None:
            return
        where = f"{path}:{records.line}"
        if len(values) == len(names):
            yield Row(dict(zip(names, values, strict=True)), where)
        elif values:
            quote = f", in {records.num_held} lines that a quote in this one joins" if records.num_held > 1 else ""
            message = f"{where}: {len(values)} values where the header names {len(names)}{quote}"
            yield BadRow("wrong number of values", message, records.drop_line())


def _is_quoted(sample: str) -> bool:
    """Whether a TSV file reads as quoted: some value is in quotes, each quote is closed, every row is whole."""
    is_cut = len(sample) == SAMPLE_CHARS
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(sample, newline=""), delimiter="\t", strict=True):
            rows.append(row)
    except csv.Error as error:
        if not (is_cut and str(error) == "unexpected end of data"):
            return False
    if is_cut and rows:
        rows.pop()
    widths = {len(row) for row in rows if row}
    return '"' in sample and len(widths) == 1


SPOKEN = frozenset(("role", "from", "function", "arguments", "parameters"))
"""Keys of messages, of tool calls and of tools."""


def read_parquet(path: Path, wanted: Wanted) -> Rows:
    """The rows of a Parquet file, read a row group's batch at a time."""
    with _parquet(path) as file:
        names = file.schema_arrow.names
        _require_distinct(names, path)
        columns = wanted.of(names)
        yield from _batch_rows(file.iter_batches(batch_size=256, columns=columns or None), path)


def count_parquet(path: Path) -> int:
    """The number of rows, as the file's metadata has it."""
    with _parquet(path) as file:
        return int(file.metadata.num_rows)


def read_arrow(path: Path, wanted: Wanted) -> Rows:
    """The rows of an Arrow file in either of its two formats, stream or file."""
    with _arrow(path) as batches:
        yield from _batch_rows((_selected(batch, wanted, path) for batch in batches), path)


def count_arrow(path: Path) -> int:
    """The number of rows."""
    with _arrow(path) as batches:
        return sum(batch.num_rows for batch in batches)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with seekable(path) as file:
        try:
            yield pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: not a readable Parquet file ({one_line(error)})") from None


@contextlib.contextmanager
def _arrow(path: Path) -> Iterator[Iterator[Any]]:
    import pyarrow as pa

    with seekable(path) as file:
        try:
            is_file_format = file.read(6) == b"ARROW1"
            file.seek(0)
            if is_file_format:
                reader = pa.ipc.open_file(file)
                yield (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                yield iter(pa.ipc.open_stream(file))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: not a readable Arrow file ({one_line(error)})") from None


def _batch_rows(batches: Iterator[Any], path: Path) -> Iterator[Row]:
    number = 0
    for batch in batches:
        names = batch.schema.names
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):  # of one value: a date after 9999, invalid UTF-8
            columns = [[_plain(value) for value in column] for column in batch.columns]
            rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        for fields in rows:
            yield Row({name: _without_filled(value) for name, value in fields.items()}, f"{path} row {number}")
            number += 1


def _without_filled(column: Any) -> Any:
    """The messages or tools of a column without the keys that Arrow filled with nulls; any other value as it is.

    Arrow gives every object of a column the keys of all of them: `{"city": "Paris"}` of one call comes back as
    `{"city": "Paris", "unit": null}` where another one has a unit. A row of JSON is kept to the letter.
    """
    is_spoken = isinstance(column, list) and any(
        isinstance(item, dict) and not SPOKEN.isdisjoint(item) for item in column
    )
    return _without_nulls(column) if is_spoken else column


def _without_nulls(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_nulls(value) for key, value in tree.items() if value is not None}
    return [_without_nulls(value) for value in tree] if isinstance(tree, list) else tree


def _selected(batch: Any, wanted: Wanted, path: Path) -> Any:
    """The columns of a batch that are wanted; all of it if it has none of them."""
    names = batch.schema.names
    _require_distinct(names, path)
    columns = wanted.of(names)
    return batch.select(columns) if columns else batch


def _require_distinct(names: Sequence[str], path: Path) -> None:
    """Raise ValueError if two columns have one name, of which a row could have only one; nameless ones may."""
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: two columns are called {twice!r}; rename one")


def _plain(value: Any) -> Any:
    """A value as Python has it; as a string where Python has none, invalid bytes as lone surrogates (as in CSV)."""
    import pyarrow as pa

    try:
        return value.as_py()
    except (ValueError, OverflowError):
        if isinstance(value, pa.StructScalar):
            return {name: _plain(value[name]) for name in value}
        if isinstance(value, pa.ListScalar):
            return [_plain(item) for item in value]
        if isinstance(value, pa.DictionaryScalar):
            return _plain(value.value)
        if isinstance(value, pa.StringScalar):
            return value.as_buffer().to_pybytes().decode(errors="surrogateescape")
        return str(value.cast(pa.string()))
