"""Rows of numbers as `metrics.jsonl` has them, kept as columns: a run of a million rows fits into memory.

A row need not have every field. A field that is null was not finite, and is None in a row and NaN in a column.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, overload

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from llmtrain.system.json_lines import parsed, whole_lines

Row = Mapping[str, Any]


class Rows(Sequence[Row]):
    """Rows by step. What is not a number is left out of them."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        """Raises KeyError or TypeError for a row whose `step` is not a finite number, OverflowError for a huge one."""
        self._size = 0
        self._cells: dict[str, tuple[array[int], array[float]]] = {}  # field -> (numbers of rows, values)
        for row in rows:
            self._append(row)
        self._sort()

    @classmethod
    def read(cls, path: Path) -> tuple[Rows, Rows, int]:
        """Training rows and evaluation rows of a `metrics.jsonl`, and how many lines cannot be read.

        A last line that is not whole is none of them: it may be being written.
        """
        train, evaluations, num_bad = cls(), cls(), 0
        for line in whole_lines(path):
            row = parsed(line)
            try:
                (evaluations if "eval_loss" in (row or {}) else train)._append(row or {})
            except (KeyError, TypeError, OverflowError):
                num_bad += 1
        train._sort()
        evaluations._sort()
        return train, evaluations, num_bad

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """Any rows as columns."""
        return rows if isinstance(rows, Rows) else cls(rows)

    @property
    def names(self) -> list[str]:
        """The fields that any row has."""
        return list(self._cells)

    def column(self, name: str) -> tuple[Int[ndarray, " cells"], Float[ndarray, " cells"]]:
        """Numbers of the rows that have a field, and its values there; NaN where it was not finite."""
        numbers, values = self._cells.get(name, (array("q"), array("d")))
        return np.array(numbers, dtype=np.int64), np.array(values)

    def values(self, name: str) -> Float[ndarray, " rows"]:
        """A field of every row; NaN where a row lacks it, or it was not finite."""
        numbers, values = self.column(name)
        dense = np.full(self._size, np.nan)
        dense[numbers] = values
        return dense

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        number = range(self._size)[index]
        row: dict[str, Any] = {}
        for name, (numbers, values) in self._cells.items():
            cell = int(np.searchsorted(np.frombuffer(numbers, dtype=np.int64), number))
            if cell < len(numbers) and numbers[cell] == number:
                row[name] = _plain(name, values[cell])
        return row

    def __iter__(self) -> Iterator[Row]:
        next_cells = dict.fromkeys(self._cells, 0)
        for number in range(self._size):
            row: dict[str, Any] = {}
            for name, (numbers, values) in self._cells.items():
                cell = next_cells[name]
                if cell < len(numbers) and numbers[cell] == number:
                    row[name] = _plain(name, values[cell])
                    next_cells[name] = cell + 1
            yield row

    def _append(self, row: Row) -> None:
        if not math.isfinite(row["step"]):
            raise TypeError(f"step {row['step']}")
        numbers = [(name, _number(value)) for name, value in row.items() if isinstance(value, (int, float, NoneType))]
        for name, value in numbers:
            cells = self._cells.get(name)
            if cells is None:
                cells = self._cells[name] = (array("q"), array("d"))
            cells[0].append(self._size)
            cells[1].append(value)
        self._size += 1

    def _sort(self) -> None:
        """Put the rows into the order of their steps; those of one step stay in theirs."""
        steps = self.column("step")[1]
        if (np.diff(steps) >= 0).all():
            return
        place = np.argsort(np.argsort(steps, kind="stable"), kind="stable")  # number of a row -> its place
        for name in self._cells:
            numbers, values = self.column(name)
            order = np.argsort(place[numbers])
            self._cells[name] = array("q", place[numbers][order].tolist()), array("d", values[order].tolist())


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _plain(name: str, value: float) -> float | int | None:
    """A value as its row had it; counts are whole numbers."""
    if not math.isfinite(value):
        return None
    return int(value) if name in COUNTS else value


COUNTS = {"step", "tokens", "memory_bytes", "nonfinite_steps"}
