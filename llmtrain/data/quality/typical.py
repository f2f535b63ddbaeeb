"""Which items a model predicts best and worst; `eval.typical` measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain.data.quality.items import Item


@dataclass(frozen=True)
class ItemLoss:
    """A model's loss on the beginning of an item."""

    item: Item
    loss: float  # nats per token
    bits_per_byte: float
    num_tokens: int


@dataclass(frozen=True)
class Losses:
    """The losses of some items, from the lowest; a text is read as it is, without a chat template."""

    model: str
    items: Sequence[ItemLoss]
    most_tokens: int  # of an item
    num_skipped: int  # items with too few tokens to say anything
