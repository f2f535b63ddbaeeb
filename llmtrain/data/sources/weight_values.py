"""What a field of a row says of its weight: `"weight": 0.5`, `"train": false` -> a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain.system.finite import is_number

WEIGHT = "weight"
"""The key of a message or row that holds its weight, where it is not 1."""
FLAGS = ("train", "training", "trainable", "loss", "loss_mask")
"""Keys that say yes or no."""
REFUSED = {"masked": "a masked message is not trained", "mask": "it may mean either"}
"""Keys that say yes or no the other way round, or either way."""
ROW_KEYS = (WEIGHT, "train")
LARGEST = 10.0
"""A weight above it is taken for something else, such as a length."""
CELLS = {"true": True, "false": False, "": None}
NOT_TRAINED = "weight is 0"


def typed(value: Any) -> Any:
    """A cell of a table without types, such as CSV, as the number or truth value that its text is."""
    text = value.strip().lower() if isinstance(value, str) else None
    if text in CELLS:
        return CELLS[text]
    try:
        return value if text is None else float(text)
    except ValueError:
        return value


def weight_value(value: Any, key: str) -> float | None:
    """The weight that a value is; None: it is none."""
    if isinstance(value, bool):
        return float(value)
    if key in FLAGS and value not in (0, 1):
        return None
    return float(value) if is_number(value) and 0 <= value <= LARGEST else None


def text_weights(fields: Mapping[str, Any]) -> dict[str, float]:
    """The fields of a row of text that give its weight; what is no weight, such as `12 kg`, is something else."""
    found = {key: weight_value(typed(fields.get(key)), key) for key in ROW_KEYS}
    return {key: weight for key, weight in found.items() if weight is not None}
