"""Whether a tokenizer that was opened works: some values of its files are read with the first text only."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from llmtrain.system.files import one_line

MOST_IDS = 2**24
"""Ids of a vocabulary: a tokenizer is written with memory for each number up to its largest, used or not."""


def require_reading(tokenizer: Any) -> None:
    """Raises ValueError for a tokenizer of transformers that cannot read a text or be written, such as one with a
    `model_max_length` that is no number, or with an id of a few thousand millions."""
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, (int, float)):
        raise ValueError(f"tokenizer_config.json: model_max_length={length!r:.40}: give a number")
    if tokenizer.is_fast:
        token, last = max(tokenizer.get_vocab().items(), key=itemgetter(1), default=("", 0))
        if last >= MOST_IDS:
            raise ValueError(
                f"tokenizer.json: the token {token!r:.40} has the id {last:,}, which no vocabulary has: bring the "
                "file back from a copy"
            )
    try:
        tokenizer.decode(tokenizer("")["input_ids"])  # no letter: an alphabet of four need not have it
    except Exception as error:  # of values of any kind
        raise ValueError(f"its tokenizer reads no text: {one_line(error)}") from None
