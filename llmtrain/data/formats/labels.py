"""KTO's label of an answer, however it is written: true, 1, "yes", "desirable" -> whether the answer is desirable."""

from __future__ import annotations

from typing import Any

LABELS = ("label", "kto_tag")
"""Fields that may say whether an answer is desirable."""
DESIRABLE = frozenset(
    {"true", "1", "1.0", "+1", "yes", "y", "good", "desirable", "chosen", "positive", "thumbs_up", "up"}
)
UNDESIRABLE = frozenset(
    {"false", "0", "0.0", "-1", "no", "n", "bad", "undesirable", "rejected", "negative", "thumbs_down", "down"}
)


def label_of(value: Any) -> bool | None:
    """Whether an answer is desirable; None: the value does not say it."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return True if value == 1 else False if value in (0, -1) else None
    text = value.strip().lower() if isinstance(value, str) else ""
    return True if text in DESIRABLE else False if text in UNDESIRABLE else None
