"""How much of a row and of its messages is trained: `"train": false`, `"weight": 0.5` -> one number for each answer.

The loss is the mean over trained tokens by these weights, sum(w * nll) / sum(w). A message says it as `weight`
(OpenAI), `train`, `training` (Axolotl), `trainable`, `loss` (ms-swift) or `loss_mask`, a row as `weight` or `train`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmtrain.data.formats.faults import UnfitRow, UnwantedRow
from llmtrain.data.sources.weight_values import (
    FLAGS,
    LARGEST,
    NOT_TRAINED,
    REFUSED,
    ROW_KEYS,
    WEIGHT,
    typed,
    weight_value,
)

MESSAGE_KEYS = (WEIGHT, *FLAGS)


def weight_of(values: Mapping[str, Any], keys: Sequence[str], place: str) -> float | None:
    """The weight that one of these keys gives; None: none of them has a value.

    Raises UnfitRow for a value that is no weight, and for two that differ.
    """
    given = {key: _number(values[key], key, place) for key in keys if values.get(key) is not None}
    if len({weight > 0 for weight in given.values()}) > 1:
        shown = " and ".join(f"{key}={values[key]!r}" for key in given)
        raise UnfitRow("contradictory weights", f"{place} has {shown}: leave one of them out")
    return given.get(WEIGHT, next(iter(given.values()), None))


def row_weight(row: Mapping[str, Any]) -> float:
    """The weight of a row, 1 where it gives none. Raises UnfitRow, and UnwantedRow where it is 0."""
    weight = weight_of({key: typed(row.get(key)) for key in ROW_KEYS}, ROW_KEYS, "the row")
    if weight == 0:
        raise UnwantedRow(NOT_TRAINED)
    return 1.0 if weight is None else weight


def weight_field(row: Mapping[str, Any]) -> str | None:
    """The field of a row that gives its weight; None: there is none."""
    return next((key for key in ROW_KEYS if row.get(key) is not None), None)


def weight_note(row: Mapping[str, Any]) -> str:
    """What the user should know of a row's weight; mostly nothing."""
    field = weight_field(row)
    return "" if field is None else f"the field {field} is the weight of a row in the loss"


def message_weight(turn: Mapping[str, Any], role: str, place: str) -> float:
    """The weight of a message, 1 where it gives none. Raises UnfitRow, also for a wish to train no answer."""
    unclear = next(
        (key for key in REFUSED if turn.get(key) is not None and weight_value(turn[key], "train") is not None), None
    )
    if unclear is not None:
        raise UnfitRow(
            "unclear weight",
            f"{place} has {unclear}={turn[unclear]!r}: {REFUSED[unclear]}; write train: true or false instead",
        )
    weight = weight_of(turn, MESSAGE_KEYS, place)
    wished = next((key for key in FLAGS if turn.get(key) is not None), None)
    if role != "assistant" and weight and wished is not None:
        raise UnfitRow(
            "weight of a message that is no answer",
            f"{place} is not an answer and has {wished}={turn[wished]!r}: only answers are trained; take it out, or "
            f"train every token: data.loss_on=all, and no {wished} in any message",
        )
    return 1.0 if weight is None else weight


def without_weights(messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Messages as templates take them."""
    return tuple(
        {key: value for key, value in message.items() if key != WEIGHT} if WEIGHT in message else message
        for message in messages
    )


def weights_of(messages: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """The weight of each message; (): each has 1."""
    weights = tuple(float(message.get(WEIGHT, 1.0)) for message in messages)
    return weights if any(weight != 1 for weight in weights) else ()


def _number(value: Any, key: str, place: str) -> float:
    if (weight := weight_value(value, key)) is None:
        values = "true or false" if key in FLAGS else f"true, false or a number from 0 to {LARGEST:g}"
        raise UnfitRow("malformed weight", f"{place} has {key}={value!r}: give {values}")
    return weight
