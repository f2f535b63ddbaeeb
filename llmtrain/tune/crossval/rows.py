"""The rows of a run's sources -> the group of each, and a file of rows for each fold.

    data/source-0/fold-1.jsonl  fold-2.jsonl ...    rows as the source has them, each in one file
    data/rows.jsonl                                 {"row": 3, "where": "rows.csv:5", "source": 0, "fold": 2, ...}

Fold k trains on a source's folder without fold-k.jsonl, and holds that file out: so nothing is stored once per fold.
Rows that a run would leave out are in no file; `rows.jsonl` names them with the reason.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llmtrain.config.data import Source
from llmtrain.config.recipes import PreferenceStageConfig, RecipeConfig, SftConfig
from llmtrain.data.formats.instructions import chat_reader
from llmtrain.data.formats.labelled import has_labels, label_reader
from llmtrain.data.formats.preferences import pair_reader
from llmtrain.data.formats.read import FormatReader, ReadRow, read_rows
from llmtrain.data.sources.rows import BadRow, Fields, Row, value_at

BUFFER_BYTES = 32 << 20
"""Rows that are held before they are appended to the files of their folds."""

AnyReader = Callable[[Row], FormatReader[Any]]


@dataclass
class Grouped:
    """The rows of all sources, in order."""

    groups: list[str | None] = field(default_factory=list)  # of each row; None: no run would use it
    sizes: Counter[str] = field(default_factory=Counter)  # group -> rows
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    split_contents: int = 0  # groups by content whose rows are in several groups by key

    @property
    def num_used(self) -> int:
        return self.sizes.total()


def reader_of(config: RecipeConfig, source: Source) -> AnyReader:
    """How a recipe reads the rows of a source."""
    if isinstance(config, SftConfig):
        return chat_reader(source)
    is_kto = isinstance(config, PreferenceStageConfig) and config.preference.loss == "kto"
    return label_reader(source) if is_kto and has_labels(source) else pair_reader(source)


def group_rows(config: RecipeConfig, by: str | None) -> Grouped:
    """The group of every row: of the same value of the field `by`, or, None, of the same content.

    The content of a chat is the conversation; of pairs and labelled answers, the question: the first human turn. Raises
    ValueError for bad rows, unless `data.on_bad_row` is skip, and for rows without the field.
    """
    found = Grouped()
    keys_of: dict[str, str] = {}  # content -> its group, where there is a key
    split: set[str] = set()
    missing: list[str] = []
    names: dict[str, None] = {}
    for _, read in _rows_of(config):
        if read.fault is not None:
            found.groups.append(None)
            found.dropped[read.fault] += 1
            continue
        row = read.row
        assert isinstance(row, Row)
        content = read.examples[0].digest().hex()
        group = content if by is None else _group_by(row.fields, by)
        if group is None:
            missing.append(row.where)
            names |= dict.fromkeys(row.fields)
            continue
        if keys_of.setdefault(content, group) != group:
            split.add(content)
        found.groups.append(group)
        found.sizes[group] += 1
    if missing:
        total = len(missing) + found.num_used
        raise ValueError(
            f"--by {by}: {len(missing):,} of {total:,} rows have no {by}, the first is {missing[0]} "
            f"(fields {', '.join(names)}): add it, or name another field"
        )
    found.split_contents = len(split)
    return found


def write_folds(config: RecipeConfig, groups: Sequence[str | None], folds: dict[str, int], folder: Path) -> None:
    """Write the files of all folds into a folder that has none; a fold without rows of a source has no file."""
    buffers: dict[Path, bytearray] = {}
    num_held = 0

    def flush() -> None:
        for path, lines in buffers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        buffers.clear()

    for number, ((index, read), group) in enumerate(zip(_rows_of(config), groups, strict=True)):
        record: dict[str, Any] = {"row": number, "where": _where(read.row), "source": index}
        if group is None:
            record["dropped"] = read.fault
        else:
            assert isinstance(read.row, Row)
            line = row_line(read.row.fields)
            record |= {"fold": folds[group] + 1, "group": group}
            buffers.setdefault(fold_file(folder, index, folds[group] + 1), bytearray()).extend(line)
            num_held += len(line)
        buffers.setdefault(folder / ROWS, bytearray()).extend(row_line(record))
        if num_held > BUFFER_BYTES:
            flush()
            num_held = 0
    flush()


ROWS = "rows.jsonl"


def source_folder(folder: Path, source: int) -> Path:
    """Where the rows of a source are; `folder`: the one that `write_folds` has written to."""
    return folder / f"source-{source}"


def fold_file(folder: Path, source: int, fold: int) -> Path:
    """The rows of a source that a fold, from 1, holds out."""
    return source_folder(folder, source) / f"fold-{fold}.jsonl"


def row_line(fields: Fields) -> bytes:
    """A row as a line of JSON; a value that JSON has not, such as a date, as text."""
    try:
        text = json.dumps(fields, ensure_ascii=False, default=str)
        return f"{text}\n".encode()
    except UnicodeEncodeError:  # half a surrogate pair: a reader finds it again
        return f"{json.dumps(fields, default=str)}\n".encode()


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of `rows.jsonl`."""
    with (folder / ROWS).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _rows_of(config: RecipeConfig) -> Iterator[tuple[int, ReadRow[Any]]]:
    """(number of the source, row) of all sources. Raises ValueError for a bad row where those are errors."""
    for index, source in enumerate(config.data.train):
        num_used = 0
        for read in read_rows(source, reader_of(config, source)):
            if isinstance(read.found, BadRow) and config.data.on_bad_row == "error":
                raise ValueError(f"{read.found.message}; fix the row, or set data.on_bad_row=skip")
            num_used += read.fault is None
            yield index, read
        if not num_used:
            raise ValueError(f"data.train[{index}]={source.path}: no row of it can be used")


def _group_by(fields: Fields, key: str) -> str | None:
    """The value of a row's field, as JSON; None: it has none."""
    try:
        value = value_at(fields, key)
    except KeyError:
        return None
    if value is None or value == "":
        return None
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 100 else blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _where(row: Row | BadRow) -> str:
    return row.where if isinstance(row, Row) else row.message.partition(": ")[0]
