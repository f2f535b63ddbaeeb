"""A given model at another context: RoPE, the number of positions, the sliding window.

These fields of a configuration leave the shape of every weight, so a model can be continued with others than it was
trained with: `model.config.rope_parameters.factor=4`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig

from llmtrain.system.files import one_line

FIELDS = ("max_position_embeddings", "rope_parameters", "sliding_window")
OF_DECODERS = "max_target_positions"  # positions, of a model that was made to decode speech
KEPT = ("rope_theta", "partial_rotary_factor")  # parameters that every type of RoPE has
# What frequencies these types scale from is the context that the model was trained with.
WITH_ORIGINAL = ("yarn", "llama3")
# Types whose frequencies change with the longest document of a microbatch, so that packing would change the result.
BY_LENGTH = ("dynamic", "longrope")


def num_positions(shape: PreTrainedConfig) -> int | None:
    """How many tokens of a document a model has positions for; None: it sets no limit."""
    text = shape.get_text_config()
    fields = text.to_dict()
    positions: int | None = fields.get(text.attribute_map.get(FIELDS[0], FIELDS[0]), fields.get(OF_DECODERS))
    return positions


def require_fixed_rope(shape: PreTrainedConfig, max_seq_len: int) -> None:
    """Raise ValueError if the RoPE of a text changes while it grows to `max_seq_len` tokens.

    Its first tokens were drawn with the frequencies of a short text, and would be trained with those of a long one.
    """
    text = shape.get_text_config().to_dict()
    given = text.get("rope_parameters") or {}
    for parameters in (given, *(value for value in given.values() if isinstance(value, dict))):
        bound = parameters.get("original_max_position_embeddings") or text.get("original_max_position_embeddings")
        if parameters.get("rope_type") == "longrope" and bound is not None and max_seq_len > bound:
            raise ValueError(
                f"data.max_seq_len={max_seq_len}: this model's RoPE (longrope) changes at {bound} tokens, so a "
                f"response that grows past them was drawn by another model than the one that trains: at most {bound}"
            )


def with_context(shape: PreTrainedConfig, changes: Mapping[str, Any], path: str) -> PreTrainedConfig:
    """A copy of the configuration of the model at `path` with other positions.

    `rope_parameters` are merged into those that there are. Raises ValueError for a field that the architecture does not
    have, or that would change the shape of a weight, and for parameters that its type of RoPE does not take.
    """
    stored = shape.to_dict()
    for name in changes:
        if name not in FIELDS:
            raise ValueError(
                f"model.config.{name}: the model of model.path={path} keeps the shapes of its weights: only "
                f"{', '.join(FIELDS)} can be given with it"
            )
        if name not in stored or (name != "sliding_window" and not stored.get("rope_parameters")):
            raise ValueError(
                f"model.config.{name}: {shape.model_type} has no {'such field' if name in FIELDS[2:] else 'RoPE'}, so "
                f"the model of model.path={path} keeps its own"
            )
    changed = copy.deepcopy(shape)
    try:
        with _warnings_as_errors():
            for name, value in changes.items():
                if name != "rope_parameters":
                    setattr(changed, name, _positive(name, value))
            if "rope_parameters" in changes:
                parameters = _merged(stored, changes["rope_parameters"])
                changed.rope_parameters = parameters
                changed.standardize_rope_params()
                changed.validate_rope()
    except (KeyError, TypeError) as error:
        raise ValueError(f"model.config.rope_parameters: {one_line(error)}") from None
    return changed


def described(before: PreTrainedConfig, after: PreTrainedConfig) -> str:
    """One line on what `with_context` changed, empty if it is nothing: `max_position_embeddings 2048 -> 8192`."""
    old, new = before.to_dict(), after.to_dict()
    return ", ".join(f"{name} {old.get(name)} -> {new[name]}" for name in FIELDS if old.get(name) != new.get(name))


def _positive(name: str, value: Any) -> int | None:
    if (value is None and name == "sliding_window") or (type(value) is int and value > 0):
        return value
    raise ValueError(f"model.config.{name}={value!r}: must be a positive whole number")


def _merged(stored: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """The RoPE parameters of a configuration with those that were given."""
    own: dict[str, Any] = stored["rope_parameters"]
    if not isinstance(given, Mapping):
        raise ValueError(f"model.config.rope_parameters={given!r}: give its parameters, such as {{rope_type: yarn}}")
    if any(isinstance(value, dict) for value in own.values()):  # one for each type of layer
        if unknown := sorted(set(given) - set(own)):
            raise ValueError(
                f"model.config.rope_parameters.{unknown[0]}: this model has RoPE for each type of layer: write "
                f"{' or '.join(f'model.config.rope_parameters.{name}.{unknown[0]}' for name in own)}"
            )
        return {name: _one(stored, value, given[name]) if name in given else value for name, value in own.items()}
    return _one(stored, own, given)


def _one(stored: Mapping[str, Any], own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of one RoPE: another type drops those of the type before."""
    kind = given.get("rope_type", own["rope_type"])
    if kind in BY_LENGTH:
        raise ValueError(
            f"model.config.rope_parameters.rope_type={kind}: its frequencies change with the longest document of a "
            "microbatch: take linear, yarn or llama3"
        )
    before = own if kind == own["rope_type"] else {name: own[name] for name in KEPT if name in own}
    merged = {**before, **given}
    if kind in WITH_ORIGINAL:
        trained = own.get("original_max_position_embeddings", stored["max_position_embeddings"])
        merged.setdefault("original_max_position_embeddings", trained)
    return merged


@contextmanager
def _warnings_as_errors() -> Iterator[None]:
    """Raise ValueError for what transformers only warns of: parameters that do nothing or are out of range."""
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, collector = logging.getLogger("transformers.modeling_rope_utils"), Collector(logging.WARNING)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagates
    if said:
        raise ValueError(f"model.config.rope_parameters: {' '.join(said[0].split())}")
