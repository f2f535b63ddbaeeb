"""Rows that hold more than text: the text of such a row alone would teach answers about what cannot be seen."""

from __future__ import annotations

import json

from llmtrain.data.formats.faults import UnfitRow, kind
from llmtrain.data.sources.rows import Fields

FIELDS = ("images", "image", "videos", "video", "audios", "audio")
MARKS = ("<image>", "<|image|>", "<video>", "<audio>", "<|audio|>")
"""What rows have in their text where an image, a video or a sound belongs."""


def require_text_alone(row: Fields) -> None:
    """Raise UnfitRow for a row with images, videos or sounds; a path or an address beside plain text is none."""
    for name in FIELDS:
        value = row.get(name)
        if value is None or value == "" or (isinstance(value, list | tuple) and not any(value)):
            continue
        if not isinstance(value, str) or _is_marked(row):
            raise UnfitRow(
                f"{name} beside the text",
                f"its field {name} holds {kind(value)}, and only text is trained on: leave the row out",
            )


def media_notes(row: Fields) -> list[str]:
    """A note for each field that names images, videos or sounds beside text that does without them."""
    held = [name for name in FIELDS if row.get(name) is not None and row[name] not in ("", [], {})]
    return [f"{name} of a row, which is not read: only text is" for name in held]


def _is_marked(row: Fields) -> bool:
    text = json.dumps(row, ensure_ascii=False, default=str)
    return any(mark in text for mark in MARKS)
