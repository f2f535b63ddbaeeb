"""Files of rows -> rows, one at a time: JSON lines, JSON, CSV, TSV, Parquet, Arrow, hub datasets.

`READERS` is the one table of what is read: a new type of file is a function here and its suffix there.

A row that cannot be read is yielded as a `BadRow`, so that the caller decides whether it stops the run.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from llmtrain.config.sections import Source
from llmtrain.system.files import one_line

TEXT_SUFFIXES = (".txt", ".md", ".rst")
"""Files that are one text each, not rows."""
COMPRESSIONS = (".gz", ".zst")

Fields = Mapping[str, Any]
Slice = tuple[Fraction, Fraction]
WHOLE: Slice = (Fraction(0), Fraction(1))


@dataclass(frozen=True)
class Row:
    """One row."""

    fields: Fields
    where: str  # file:line, for messages to the user


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    reason: str  # one of a few, for counting
    message: str  # one line that starts with file:line
    num_bytes: int  # of the row in the file


Rows = Iterator[Row | BadRow]


def read_jsonl(path: Path) -> Rows:
    """The objects of a file of JSON lines; blank lines are left out."""
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            row = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
            if row:
                yield _parse_row(row, f"{path}:{number}")


def read_json(path: Path) -> Rows:
    """The rows of a JSON file: a list of objects, an object that holds them, or JSON lines.

    An object holds rows as a mapping of keys to rows, or as its only list of rows (`{"data": [...]}`);
    any other object is one row. Lists and objects are read into memory whole.
    """
    if _is_json_lines(path):
        yield from read_jsonl(path)
        return
    with open_binary(path) as file:
        data = file.read()
    tree = _parse(data, path)
    if isinstance(tree, BadRow):
        yield tree
        return
    for name, item in _rows_of(tree):
        where = f"{path}, {name}" if name else str(path)
        yield Row(item, where) if isinstance(item, dict) else _not_an_object(where, item)


def read_csv(path: Path) -> Rows:
    """The rows of a CSV or TSV file whose first line names the fields; every value is a string."""
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if ".tsv" in path.suffixes[-2:] else ","
    with open_binary(path) as binary:
        # Invalid bytes become lone surrogates, which make the text they are in a bad row later.
        file = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(file, delimiter=delimiter)
        names = next(reader, [])
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                yield BadRow("malformed CSV", f"{path}:{line}: malformed CSV ({error})", 0)
                continue
            if values is None:
                return
            if len(values) == len(names):
                yield Row(dict(zip(names, values, strict=True)), f"{path}:{line}")
            elif values:
                message = f"{path}:{line}: {len(values)} values where the header names {len(names)}"
                yield BadRow("wrong number of values", message, sum(map(len, values)))


def read_parquet(path: Path) -> Rows:
    """The rows of a Parquet file, read a row group's batch at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _seekable(path) as file:
        try:
            batches = pq.ParquetFile(file).iter_batches(batch_size=256)
            yield from _batch_rows(batches, path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: not a readable Parquet file ({one_line(error)})") from None


def read_arrow(path: Path) -> Rows:
    """The rows of an Arrow file in either of its two formats, stream or file."""
    import pyarrow as pa

    with _seekable(path) as file:
        try:
            is_file_format = file.read(6) == b"ARROW1"
            file.seek(0)
            if is_file_format:
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(file))
            yield from _batch_rows(batches, path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: not a readable Arrow file ({one_line(error)})") from None


READERS = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
"""Suffix -> reader; each suffix may be followed by one of COMPRESSIONS."""


def read_rows(path: Path, kind: str, part: Slice) -> Rows:
    """The rows of a file, or a part of them; `kind` is a suffix of READERS. Raises ValueError for a broken file."""
    with readable(path):
        yield from _rows_within(partial(READERS[kind], path), part)


def read_hub(source: Source, name: str, commit: str) -> Rows:
    """The rows of a hub dataset, streamed, or a part of them. Raises ValueError if the hub does not give them."""
    yield from _rows_within(partial(_hub_rows, source, name, commit), parse_slice(source.slice))


def _hub_rows(source: Source, name: str, commit: str) -> Rows:
    from datasets import load_dataset

    try:
        split = None if source.split == "all" else source.split
        loaded = load_dataset(name, source.subset, split=split, revision=commit, streaming=True)
        rows = itertools.chain.from_iterable(loaded.values()) if split is None else loaded
        for number, fields in enumerate(rows):
            yield Row(fields, f"{name} row {number}")
    except Exception as error:  # the hub's clients raise several libraries' errors
        raise ValueError(f"{name} (split {source.split}): cannot be read from the hub: {one_line(error)}") from None


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns the errors of a file that is missing, cut off or damaged into a ValueError of one line."""
    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def parse_slice(text: str | None) -> Slice:
    """`0%:90%` -> exact fractions."""
    if text is None:
        return WHOLE
    low, high = (Fraction(bound.removesuffix("%")) / 100 for bound in text.split(":"))
    if not low < high <= 1:
        raise ValueError(f"slice {text!r} is not a range within 0%:100%")
    return low, high


def bounds(total: int, part: Slice) -> tuple[int, int]:
    """[start, end) of a part of `total` things."""
    return int(total * part[0]), int(total * part[1])


def _rows_within(read: Callable[[], Rows], part: Slice) -> Rows:
    """The rows that `read()` gives, or a part of them, for which they are counted first."""
    if part == WHOLE:
        yield from read()
        return
    start, end = bounds(sum(1 for _ in read()), part)
    for number, row in enumerate(read()):
        if start <= number < end:
            yield row
        if number >= end:
            return


def open_binary(path: Path) -> BinaryIO:
    """A file opened for reading, decompressed by its suffix."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdReader(path), buffer_size=1 << 18))
    return path.open("rb")


class _ZstdReader(io.RawIOBase):
    """Decompresses all frames of a file; unlike zstandard's own reader it does not take a cut-off file for a whole."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decompressor = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
        self._compressed = b""
        self._plain = b""
        self._in_frame = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            self._compressed = self._compressed or self._file.read(1 << 17)
            if not self._compressed:
                if self._in_frame:
                    raise EOFError("the compressed file ends before its end-of-stream marker")
                return 0
            if self._decompressor.eof:
                self._decompressor = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
            self._plain = self._decompressor.decompress(self._compressed)
            self._in_frame = not self._decompressor.eof
            self._compressed = self._decompressor.unused_data if self._decompressor.eof else b""
        size = min(len(buffer), len(self._plain))
        buffer[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        return size


def _parse_row(line: bytes, where: str) -> Row | BadRow:
    try:
        tree = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadRow("invalid UTF-8", f"{where}: invalid UTF-8 at byte {error.start} of the line", len(line))
    except json.JSONDecodeError as error:
        return BadRow("malformed JSON", f"{where}: malformed JSON ({error.msg} at column {error.colno})", len(line))
    except RecursionError:
        return BadRow("malformed JSON", f"{where}: malformed JSON (nested too deep)", len(line))
    return Row(tree, where) if isinstance(tree, dict) else _not_an_object(where, tree, len(line))


def _parse(data: bytes, path: Path) -> Any | BadRow:
    """The tree of a whole JSON file."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return BadRow("invalid UTF-8", f"{path}:{line}: invalid UTF-8 at byte {error.start}", len(data))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        return BadRow("malformed JSON", f"{where}: malformed JSON ({error.msg} at column {error.colno})", len(data))
    except RecursionError:
        return BadRow("malformed JSON", f"{path}: malformed JSON (nested too deep)", len(data))


def _is_json_lines(path: Path) -> bool:
    """Whether the first two lines with text are each a whole JSON object."""
    with open_binary(path) as file:
        first_lines = list(itertools.islice((line for line in file if line.strip()), 2))
    if len(first_lines) < 2:
        return False
    return all(isinstance(_parse_row(line, ""), Row) for line in first_lines)


def _rows_of(tree: Any) -> Iterator[tuple[str, Any]]:
    """(name of its place, row) of every row that a JSON tree holds."""
    if isinstance(tree, dict):
        lists = [value for value in tree.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        if tree and all(isinstance(value, dict) for value in tree.values()):
            yield from ((f"key {key!r}", row) for key, row in tree.items())
            return
        if len(lists) != 1:
            yield "", tree
            return
        tree = lists[0]
    if isinstance(tree, list):
        yield from ((f"row {number}", row) for number, row in enumerate(tree))
    else:
        yield "", tree


def _not_an_object(where: str, item: Any, num_bytes: int = 0) -> BadRow:
    return BadRow("not an object", f"{where}: a row must be a JSON object, not {type(item).__name__}", num_bytes)


def _batch_rows(batches: Iterator[Any], path: Path) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for fields in batch.to_pylist():
            yield Row(fields, f"{path} row {number}")
            number += 1


def _seekable(path: Path) -> BinaryIO:
    """A file open for reading at any place; a compressed one is unpacked to a temporary file first."""
    if path.suffix.lower() not in COMPRESSIONS:
        return path.open("rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with open_binary(path) as packed:
        shutil.copyfileobj(packed, unpacked)
    unpacked.seek(0)
    return cast(BinaryIO, unpacked)
