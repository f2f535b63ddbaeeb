"""Whether a tokenizer that was opened works: some values of its files are read with the first text only."""

from __future__ import annotations

from typing import Any

from llmtrain.system.files import one_line


def require_reading(tokenizer: Any) -> None:
    """Raises ValueError for a tokenizer of transformers that cannot read a text, such as one with a `model_max_length`
    that is no number."""
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, (int, float)):
        raise ValueError(f"tokenizer_config.json: model_max_length={length!r:.40}: give a number")
    try:
        tokenizer.decode(tokenizer("")["input_ids"])  # no letter: an alphabet of four need not have it
    except Exception as error:  # of values of any kind
        raise ValueError(f"its tokenizer reads no text: {one_line(error)}") from None
