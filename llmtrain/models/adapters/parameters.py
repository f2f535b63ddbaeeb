"""Which parameters get an adapter that no layer holds: the experts of a mixture, stacked in one parameter.

    experts.down_proj  (experts, hidden, inner):  y_e = (W_e + scale * B_e A_e) x        for each expert e

`adapter.target_parameters` names them as peft does. peft adds the products to the whole stack for the time of a
forward, so a router and all that is no stack of matrices is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.targets import (
    WEIGHT,
    by_weight,
    has_ending,
    is_in_layers,
    renamed_layers,
    saved_modules,
    shown,
)
from llmtrain.models.text_part import text_names

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def stacks(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of the text model that is a stack of matrices."""
    beginning = text_names(model)
    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and re.match(beginning, f"{path}.{name}") and not isinstance(module, CONVOLUTIONS)
    }


def target_parameters(model: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """What peft is to take as `target_parameters`. Raises ValueError for a name of no stack of matrices."""
    known, chosen, beginning = stacks(model), config.chosen_layers(), text_names(model)
    names = [name for name, _ in model.named_parameters()]
    of_layers = {f"{name}{WEIGHT}" for name in renamed_layers(model)} if config.target_parameters else set[str]()
    whole: list[str] = []
    targets: list[str] = []
    for target in config.target_parameters:
        found = [name for name in names if has_ending(name, target)]
        if found and by_weight(config) and of_layers.issuperset(found):
            continue  # `weights_to_name` has them
        targets.append(target)
        if not found:
            raise ValueError(
                f"adapter.target_parameters={target}: this model has no parameter of that name; "
                f"{_there_is(last_two_parts(known))}"
            )
        if other := next((name for name in found if re.match(beginning, name) and name not in known), None):
            raise ValueError(
                f"adapter.target_parameters={target}: {other} is no stack of matrices; "
                f"{_there_is(last_two_parts(known))}"
            )
        inside = [name for name in found if name in known and is_in_layers(name, chosen)]
        if not inside:
            raise ValueError(f"adapter.target_parameters={target}: no layer of adapter.layers has it")
        whole += inside
    _require_not_in_full(whole, saved_modules(model, config.modules_to_save))
    # peft knows neither layers nor a part of a model here, but whole names.
    return sorted(whole) if chosen is not None or beginning else targets


def last_two_parts(names: Iterable[str]) -> set[str]:
    """The last two parts of dotted names."""
    return {".".join(name.split(".")[-2:]) for name in names}


def _there_is(names: set[str]) -> str:
    return f"it has {shown(names)}" if names else "it has no experts in stacks: name linear layers in adapter.target"


def _require_not_in_full(names: Iterable[str], in_full: Mapping[str, nn.Module]) -> None:
    for name in names:
        if saved := next((whole for whole in in_full if name.startswith(f"{whole}.")), None):
            raise ValueError(
                f"adapter.modules_to_save: {saved} holds {name}, which adapter.target_parameters names: leave one out"
            )
