"""What a reward gets of a sample: the prompt, and the data row that the prompt is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmtrain.data.sources.rows import has_field, value_at

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
