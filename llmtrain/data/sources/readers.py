"""Files of rows -> rows, one at a time: JSON lines, JSON, CSV, TSV, Parquet, Arrow, hub datasets.

`READERS` is the one table of what is read: a new type of file is a function, and its suffix there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmtrain.config.data import Source
from llmtrain.data.sources.compressed import readable
from llmtrain.data.sources.json_rows import count_jsonl, read_json, read_jsonl
from llmtrain.data.sources.rows import Row, Rows, Wanted
from llmtrain.data.sources.slices import parse_slice, within
from llmtrain.data.sources.tables import count_arrow, count_parquet, read_arrow, read_csv, read_parquet
from llmtrain.system.files import one_line

TEXT_SUFFIXES = (".txt", ".md", ".rst")
"""Files that are one text each, not rows."""


@dataclass(frozen=True)
class Reader:
    """How one kind of file is read."""

    rows: Callable[[Path, Wanted], Rows]
    count: Callable[[Path], int] | None = None  # of its rows and bad rows, if that is cheaper than reading them


READERS = {
    ".jsonl": Reader(read_jsonl, count_jsonl),
    ".ndjson": Reader(read_jsonl, count_jsonl),
    ".json": Reader(read_json),
    ".csv": Reader(read_csv),
    ".tsv": Reader(read_csv),
    ".parquet": Reader(read_parquet, count_parquet),
    ".arrow": Reader(read_arrow, count_arrow),
}
"""Suffix -> reader; each suffix may be followed by one of COMPRESSIONS."""


def read_rows(path: Path, kind: str, wanted: Wanted) -> Rows:
    """The rows of a file; `kind` is a suffix of READERS. Raises ValueError for a broken file."""
    with readable(path):
        yield from READERS[kind].rows(path, wanted)


def count_rows(path: Path, kind: str, wanted: Wanted) -> int:
    """The number of rows and bad rows that `read_rows` gives."""
    count = READERS[kind].count
    if count is None:
        return sum(1 for _ in read_rows(path, kind, wanted))
    with readable(path):
        return count(path)


def read_hub(source: Source, name: str, commit: str) -> Rows:
    """The rows of a hub dataset, streamed, or a part of them. Raises ValueError if the hub does not give them."""
    yield from within(partial(_hub_rows, source, name, commit), parse_slice(source.slice))


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
