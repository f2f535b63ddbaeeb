"""Files of rows -> rows, one at a time: JSON lines, JSON, CSV, TSV, Parquet, Arrow, hub datasets.

A row that cannot be read is yielded as a `BadRow`, so that the caller decides whether it stops the run.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from llmtrain.config.sections import Source
from llmtrain.data.sources.files import COMPRESSIONS, HubDataset, open_binary

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One row and where it stands."""

    fields: Fields
    where: str


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    reason: str  # one of a few, for counting
    message: str  # one line that starts with where it stands
    num_bytes: int  # of the row in the file


Rows = Iterator[Row | BadRow]


def read_jsonl(path: Path) -> Rows:
    """The objects of a file of JSON lines; blank lines are no rows."""
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
            raise ValueError(f"{path}: not a readable Parquet file ({_oneline(error)})") from None


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
            raise ValueError(f"{path}: not a readable Arrow file ({_oneline(error)})") from None


def read_hub(dataset: HubDataset, source: Source) -> Rows:
    """The rows of a hub dataset, streamed."""
    from datasets import load_dataset

    try:
        rows = load_dataset(dataset.name, source.subset, split=source.split, revision=dataset.commit, streaming=True)
        for number, fields in enumerate(rows):
            yield Row(fields, f"{dataset.name} row {number}")
    except Exception as error:  # the hub's clients raise several libraries' errors
        raise ValueError(
            f"{dataset.name} (split {source.split}): cannot be read from the hub: {_oneline(error)}"
        ) from None


READERS = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


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


def _oneline(error: Exception) -> str:
    return " ".join(str(error).split())
