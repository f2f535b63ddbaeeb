"""Why a row is not used: it is wrong, it is not wanted, or it is in no format that is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmtrain.data.personal import masked_part
from llmtrain.data.sources.rows import Row

QUOTED_CHARS = 48  # of a value, in a message


class UnfitRow(ValueError):
    """A row that is wrong: `reason`, one of a few, for counting; the text names what is wrong and where in the row."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class UnwantedRow(Exception):
    """A row that is valid, but not to be trained on: `reason`, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownFormat(ValueError):
    """A row in no format that is read; the text is one line that starts with file:line."""


def kind(value: Any) -> str:
    """What a value is, for messages."""
    return "null" if value is None else type(value).__name__


def masked_quote(text: str) -> str:
    """A string in quotes on one line, its personal data masked, its end left out where it is long.

    It is masked before it is cut: half an e-mail address is not known as one.
    """
    line = " ".join(masked_part(text, 0, 8 * QUOTED_CHARS).split())
    return json.dumps(line if len(line) <= QUOTED_CHARS else line[: QUOTED_CHARS - 3] + "...", ensure_ascii=False)


def field_names(row: Row) -> str:
    """The fields of a row for an error; those without anything in them say nothing of its format, so they are named."""
    listed = ", ".join(map(repr, row.fields)) or "none"
    empty = [
        repr(name)
        for name, value in row.fields.items()
        if value is None or (isinstance(value, str | list | Mapping) and not value)
    ]
    return f"{listed} (empty: {', '.join(empty)})" if empty else listed
