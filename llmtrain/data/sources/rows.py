"""One row of a source, or one that cannot be used, so that the caller decides whether it stops the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Fields = Mapping[str, Any]


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
IsRow = Callable[[Row], bool]
"""Whether an object is a row that the caller can use; of an object that holds rows as well, this decides."""


@dataclass(frozen=True)
class Wanted:
    """What the caller of a reader can use."""

    is_row: IsRow
    columns: tuple[str, ...] = ()  # a table that has any of these is read in those alone; (): all of it
    beside: tuple[str, ...] = ()  # columns that are read too, where a table has any of `columns`

    def of(self, names: Sequence[str]) -> list[str]:
        """The columns of a table that are read; []: all of them."""
        if not any(name in self.columns for name in names):
            return []
        return [name for name in names if name in self.columns or name in self.beside]


def has_field(fields: Fields, name: str) -> bool:
    """Whether there is a field of that name, or a nested one: `data.text` of `{"data": {"text": ...}}`."""
    try:
        value_at(fields, name)
    except KeyError:
        return False
    return True


def value_at(fields: Fields, name: str) -> Any:
    """The value of a field; dots lead into nested objects unless a field is called so. Raises KeyError."""
    if name in fields:
        return fields[name]
    head, dot, rest = name.partition(".")
    nested = fields[head]
    if not dot or not isinstance(nested, Mapping):
        raise KeyError(name)
    return value_at(nested, rest)
