"""Which layers of a model its small copy has: one of each kind, and few in all.

    Qwen3.5     delta delta delta attention delta ...         the first four
    Gemma 3n    30 layers, the last 10 with the keys of       0, 4, 18, 19, 20 and 24: the first of each kind, of which
                others: the first of those is number 20       two are among the last ten

The first layers are taken if a few of them are of all kinds. Else the first layer of each kind is, where the
configuration lists what each layer is; what counts layers from the first on, or up to the last, counts those that are
left. Which of these a field does is found by trial: the copy that has the most kinds is taken.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llmtrain.models.paths.tried import Fault, tried
from llmtrain.models.text_part import text_modules

MAX_LAYERS = 12
DEPTH = "num_hidden_layers"
OTHER_DEPTHS = (DEPTH, "depth")
OF_EACH = "per_layer_config"  # number of a layer -> its own fields
COUNTS = re.compile(r"(num_\w+|max_\w+)_layers|first_k_\w+")
"""Fields that count layers of one kind, from the first on or up to the last."""
PLACE = re.compile(r".*idx.*|layer_(id|index|num|number)|training")
"""What modules have of their place among the layers, and of the mode: nothing that makes a kind."""


@dataclass(frozen=True)
class Layers:
    """Layers of a model, by their numbers in it."""

    numbers: tuple[int, ...]
    counted_from: Literal["first", "last"] | None = None  # what fields that count layers begin at; None: they stay


def few_layers(model: PreTrainedModel) -> Layers | None:
    """A few layers of a model that are of as many kinds as can be; None: it does not say which modules its layers are.

    Two at least, MAX_LAYERS at most.
    """
    layers = _layers(model)
    if layers is None:
        return None
    kinds = _kinds(layers, model.config)
    first = [number for number, kind in enumerate(kinds) if kind not in kinds[:number]]
    leading = Layers(tuple(range(min(max(first[-1] + 1, min(2, len(layers))), MAX_LAYERS))))
    if first[-1] < MAX_LAYERS and _num_kinds(model, leading) == len(first):
        return leading
    picked = tuple(first[:MAX_LAYERS])
    choices = [leading, Layers(picked), Layers(picked, "first"), Layers(picked, "last")]
    return max(choices, key=lambda choice: _num_kinds(model, choice))


def cut(shape: PreTrainedConfig, layers: Layers | None) -> None:
    """Leave these layers of a configuration, and two of what is beside its text model; None: all of that."""
    text = shape.get_text_config()
    for part in parts(shape):
        for name in OTHER_DEPTHS if part is not vars(text) else ():  # a vision tower, which no text goes through
            if type(part.get(name)) is int:
                part[name] = min(part[name], 2)
    if layers is None:
        return
    name, fields = text.attribute_map.get(DEPTH, DEPTH), vars(text)
    given = text.num_hidden_layers
    for key, value in fields.items():
        if isinstance(value, (list, tuple)) and len(value) == given:
            fields[key] = type(value)(value[number] for number in layers.numbers)
        elif layers.counted_from and key != name and type(value) is int and COUNTS.fullmatch(key):
            bounds = range(value) if layers.counted_from == "first" else range(given - value, given)
            fields[key] = sum(number in bounds for number in layers.numbers)
    of_each = text.to_dict().get(OF_EACH)
    if name in fields:  # else it is the length of one of the lists
        fields[name] = len(layers.numbers)
    if of_each is not None:
        by_number = {int(number): given for number, given in of_each.items()}
        kept = [by_number.get(number, {}) for number in layers.numbers]
        setattr(text, OF_EACH, {place: given for place, given in enumerate(kept) if given})


def parts(shape: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """A configuration's own fields, and those of the configurations and tables in it."""
    waiting: list[dict[str, Any]] = [vars(shape)]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += [vars(value) for value in part.values() if isinstance(value, PreTrainedConfig)]
        waiting += [each for each in part.values() if isinstance(each, dict) and all(isinstance(k, str) for k in each)]


def _layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The layers of the text model; of several lists as long, the first."""
    parts = (module for part in text_modules(model) for module in part.modules())
    lists = [module for module in parts if isinstance(module, nn.ModuleList)]
    given = model.config.get_text_config().num_hidden_layers
    return next((each for each in lists if len(each) == given), None)


def _num_kinds(model: PreTrainedModel, layers: Layers) -> int:
    """Of how many kinds the layers of a copy with these are; 0: none can be made."""
    shape = copy.deepcopy(model.config)

    def made() -> PreTrainedModel:
        cut(shape, layers)
        with torch.device("meta"):
            copied: PreTrainedModel = type(model)._from_config(shape)
        return copied

    found = tried(made)
    own = None if isinstance(found, Fault) else _layers(found)
    return 0 if own is None or len(own) != len(layers.numbers) else len(set(_kinds(own, shape)))


def _kinds(layers: nn.ModuleList, shape: PreTrainedConfig) -> list[Any]:
    """What differs between kinds of layer: the modules in it, their windows and flags, and what lists say of it."""
    lists = [each for each in vars(shape.get_text_config()).values() if _lists_layers(each, len(layers))]
    return [(_modules(layer), *(each[number] for each in lists)) for number, layer in enumerate(layers)]


def _lists_layers(value: Any, num_layers: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == num_layers
        and all(type(each) in (str, bool) for each in value)
    )


def _modules(layer: nn.Module) -> tuple[Any, ...]:
    return tuple(
        (name, type(module), *sorted((key, value) for key, value in vars(module).items() if _counts(key, value)))
        for name, module in layer.named_modules()
    )


def _counts(key: str, value: Any) -> bool:
    return not key.startswith("_") and not PLACE.fullmatch(key) and type(value) in (bool, int, str)
