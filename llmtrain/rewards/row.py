"""What a reward gets of a sample: the prompt, and the data row that the prompt is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmtrain.data.sources.rows import has_field, value_at
from llmtrain.system.visible import shortened

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a chat."""

Row = Mapping[str, Any]


class RowError(ValueError):
    """A row that a reward cannot be computed from."""


def row_field(row: Row, name: str) -> Any:
    """A field of a row, `reward_model.ground_truth` of a nested one. Raises RowError if it has none of the name."""
    if not has_field(row, name):
        raise RowError(
            f"the row has no field {name!r}, only {', '.join(map(repr, row)) or 'none'}: set the reward's field"
        )
    return value_at(row, name)


def row_text(row: Row, name: str) -> str:
    """A field that holds a text or a number, as text. Raises RowError for null, a list, an object or no such field."""
    return _text(row_field(row, name), name)


def row_texts(row: Row, name: str) -> list[str]:
    """The texts and numbers of a field that holds one or a list of them. Raises RowError as `row_text`."""
    value = row_field(row, name)
    if isinstance(value, list) and not value:
        raise RowError(f"the row's field {name!r} is an empty list: no answer would be right")
    return [_text(each, name) for each in (value if isinstance(value, list) else [value])]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str | int | float):
        raise RowError(f"the row's field {name!r} holds {shortened(repr(value))}, neither a text nor a number")
    return str(value)
