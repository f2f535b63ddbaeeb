"""Which modules an adapter covers, as peft decides it, and which are trained in full beside it.

peft passes over a name that matches nothing if another one matches; here each name, expression and layer must match.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from torch.nn.utils import skip_init
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.experts import routers
from llmtrain.models.text_part import parameters_beside, text_names

ALL_LINEAR = "all-linear"
LINEAR = (nn.Linear, Conv1D)
LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")  # the first number among the parts of a name, as peft finds it
WEIGHT = ".weight"
SHOWN_NAMES = 20


def target_modules(model: PreTrainedModel, config: AdapterConfig, head: nn.Module | None) -> str | list[str]:
    """What peft is to take as `target_modules`. Raises ValueError for what matches no linear layer, or the head."""
    beginning = text_names(model)
    layers = {name: module for name, module in linear_layers(model).items() if re.match(beginning, name)}
    inner = {name: module for name, module in layers.items() if module is not head}
    _check_layers(inner, config)
    if not config.target:
        return []
    by_its_weight = {*renamed_layers(model)} if by_weight(config) else set[str]()
    if config.target == ALL_LINEAR:
        names = {name for name in last_parts(inner) if _refusal(model, name) is None}
        if beginning:
            return _inside(beginning, inner, names, model, config)
        is_all = names == last_parts(inner) and _keeps(model, ALL_LINEAR)
        is_all &= not any(_has_own_forward(each) for each in model.modules() if isinstance(each, LINEAR))
        return ALL_LINEAR if config.layers is None and is_all else sorted(names)
    if isinstance(config.target, str):
        _check_expression(dict(model.named_modules()), config.target, head, beginning)
        matched = sorted(name for name in inner if re.fullmatch(config.target, name))
        for name in sorted(last_parts(set(matched) - by_its_weight)):
            if (refusal := _refusal(model, name)) is not None:
                raise ValueError(f"adapter.target={config.target} matches {name}: {refusal}")
        return (
            config.target if _keeps(model, config.target) else [name for name in matched if name not in by_its_weight]
        )
    targets = []
    for target in config.target:
        named = [name for name in layers if has_ending(name, target)]
        found = [layers[name] for name in named]
        if not found:
            raise ValueError(
                f"adapter.target={target}: this model has no linear layer of that name; it has "
                f"{shown(last_parts(inner))}{_of_parameter(model, target)}"
            )
        if any(module is head for module in found):
            raise ValueError(f"adapter.target={target} is the output head, which takes no adapter: leave it out")
        if by_its_weight.issuperset(named):
            continue
        if (refusal := _refusal(model, target)) is not None:
            raise ValueError(f"adapter.target={target}: {refusal}")
        targets.append(target)
    return _inside(beginning, inner, targets, model, config) if beginning and targets else targets


def _inside(
    beginning: str,
    inner: Mapping[str, nn.Module],
    targets: Iterable[str],
    model: PreTrainedModel,
    config: AdapterConfig,
) -> str | list[str]:
    """Layers of these names inside the text model only: other parts, such as a vision tower, may have such names too.

    As one expression, or as whole names where an adapter is for some layers: peft takes a whole name in any layer.
    """
    chosen, endings = config.chosen_layers(), "|".join(re.escape(target) for target in sorted(targets))
    names = sorted(name for name in inner if re.search(rf"(^|\.)({endings})$", name) and is_in_layers(name, chosen))
    expression = rf"{beginning}(.*\.)?({endings})"
    is_the_same = chosen is None and names == sorted(name for name in inner if re.fullmatch(expression, name))
    return expression if is_the_same and _keeps(model, expression) else names


def _refusal(model: PreTrainedModel, name: str) -> str | None:
    """Why layers of a name take no adapter; None: they do."""
    try:  # some models of states hand their weight to a kernel
        _check_lora_target_modules_mamba(LoraConfig(), model, name)
    except ValueError:
        return (
            f"{model.config.model_type} reads this layer's weight without calling it, so an adapter on it would do "
            "nothing: leave it out"
        )
    if not _keeps(model, [name]):
        return (
            f"peft takes this name for one of {model.config.model_type}'s experts, and adapts the layer only without "
            "dropout and DoRA: leave it out; adapter.target_parameters names experts"
        )
    return None


def _keeps(model: PreTrainedModel, targets: str | list[str]) -> bool:
    """Whether peft adapts layers by these targets and nothing else.

    On mixtures whose experts an earlier version of transformers held as layers, it takes those layers' names for the
    experts and the router of now, and an expression or all-linear for a list of names.
    """
    lora = LoraConfig(target_modules=targets)
    before = lora.target_modules
    try:
        convert_peft_config_for_transformers(lora, model, None)
    except ValueError:
        return False
    return bool(lora.target_modules == before)


def _of_parameter(model: PreTrainedModel, target: str) -> str:
    """What to say of a target that is no layer but a parameter."""
    if not any(has_ending(name, target) for name, each in model.named_parameters() if each.ndim > 2):
        return ""
    return "; experts are named by adapter.target_parameters"


def has_ending(name: str, *endings: str) -> bool:
    """Whether the last parts of a dotted name are one of the endings: `up_proj` of `mlp.up_proj`, but not `proj`."""
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def is_in_layers(name: str, chosen: Collection[int] | None) -> bool:
    """Whether what a name is of is in the layers of these numbers; None: in any, or in none."""
    return chosen is None or _layer(name) in chosen


def _layer(name: str) -> int | None:
    found = LAYER.match(name)
    return None if found is None else int(found[1])


def by_weight(config: AdapterConfig) -> bool:
    """Whether an adapter may be of a parameter, for which peft has neither dropout nor DoRA."""
    return config.kind == "lora" and config.dropout == 0


def renamed_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Name -> linear layer of the text model that peft would take for experts by any target that names it."""
    layers, routing, beginning = linear_layers(model), router_layers(model), text_names(model)
    renamed = {last for last in last_parts(layers) if not _keeps(model, [last])}
    return {
        name: layer
        for name, layer in layers.items()
        if name.rpartition(".")[2] in renamed and name not in routing and re.match(beginning, name)
    }


def router_layers(model: PreTrainedModel) -> set[str]:
    """The linear layers of a mixture's routers, which take no adapter: it would change which experts are trained."""
    inside = {id(part) for router in routers(model) for part in router.modules()}
    return {name for name, layer in linear_layers(model).items() if id(layer) in inside}


def saved_modules(model: PreTrainedModel, names: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that are trained in full, by their whole names: those whose name ends so, as peft has it.

    Raises ValueError for a name that no module with weights ends with, for a module beside the text model, for one
    that shares its weight with another, and for one inside another.
    """
    modules = {name: module for name, module in model.named_modules() if any(True for _ in module.parameters())}
    found: dict[str, nn.Module] = {}
    for name in names:
        ending = [whole for whole in modules if whole.endswith(name)]
        if not ending:
            raise ValueError(
                f"adapter.modules_to_save={name}: this model has no module of that name; it has "
                f"{shown(last_parts(modules))}"
            )
        found |= {whole: modules[whole] for whole in ending}
    beside = {id(parameter) for parameter in parameters_beside(model)} if found else set[int]()
    for whole, module in found.items():
        if "." in whole and any(id(parameter) in beside for parameter in module.parameters()):  # a head has no dot
            raise ValueError(
                f"adapter.modules_to_save: {whole} is no part of the text model: write more of the name that you mean"
            )
        if outer := next((other for other in found if whole.startswith(f"{other}.")), None):
            raise ValueError(f"adapter.modules_to_save: {whole} is a part of {outer}: name one of them")
    shared = _shared(model, found)
    if shared is not None:
        raise ValueError(
            f"adapter.modules_to_save: {shared[0]} has its weight in common with {shared[1]}, which peft would leave "
            "as it is: leave it out"
        )
    return found


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> linear layer; without those to which a model gives a forward of its own (DeepSeek V4 groups some)."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, LINEAR)}
    return {name: module for name, module in found.items() if not _has_own_forward(module)}


def _has_own_forward(module: nn.Module) -> bool:
    """Whether a layer of a model does more than multiply by its weight: an adapter would not be added rightly."""
    own: Any = type(module)
    is_of_a_model = own.__module__.startswith(("transformers.models.", "transformers_modules."))
    return is_of_a_model and own.forward not in [cls.forward for cls in LINEAR] and not _multiplies(own)


@cache
def _multiplies(cls: type[nn.Module]) -> bool:
    """Whether a linear layer with a forward of its own (Falcon's) gives what `nn.Linear` does, tried on a small one."""
    if not issubclass(cls, nn.Linear):
        return False
    try:
        layer = skip_init(cls, 3, 2)
        inputs, bias = torch.arange(6.0).view(2, 3), torch.tensor([5.0, -3.0])
        weight = inputs + 1.0
        layer.load_state_dict({"weight": weight, "bias": bias})
        return torch.equal(layer(inputs), inputs @ weight.T + bias)
    except (TypeError, ValueError, RuntimeError):
        return False


def last_parts(names: Iterable[str]) -> set[str]:
    """The last parts of dotted names, numbers left out."""
    return {last for name in names if (last := name.rsplit(".", 1)[-1]) and not last.isdigit()}


def shown(names: Iterable[str]) -> str:
    """Names for a message, in order."""
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN_NAMES} more" if len(ordered) > SHOWN_NAMES else ""
    return ", ".join(ordered[:SHOWN_NAMES]) + more


def _check_layers(linear: Mapping[str, nn.Module], config: AdapterConfig) -> None:
    chosen = config.chosen_layers()
    if chosen is None:
        return
    if isinstance(config.target, str) and config.target != ALL_LINEAR:
        raise ValueError(
            "adapter.layers does nothing beside a regular expression in adapter.target: write the layers into it, as "
            r"in .*\.(8|9|10)\..*(q|v)_proj"
        )
    there = sorted({number for name in linear if (number := _layer(name)) is not None})
    if not there:
        raise ValueError("adapter.layers: the names of this model's modules have no numbers of layers: leave it out")
    if missing := [number for number in chosen if number not in there]:
        raise ValueError(f"adapter.layers={missing[0]}: this model has the layers {there[0]} to {there[-1]}")


def _check_expression(
    modules: Mapping[str, nn.Module], expression: str, head: nn.Module | None, beginning: str
) -> None:
    """Raise ValueError for an expression that covers no linear layer, the head, or anything else."""
    matched = {name: module for name, module in modules.items() if re.fullmatch(expression, name)}
    layers = linear_layers(modules[""])
    found = [module for name, module in matched.items() if name in layers]
    if not found:
        example = next((name for name, module in layers.items() if module is not head), "")
        hint = f"; a name by itself goes into a list, [{expression}]" if expression in last_parts(layers) else ""
        raise ValueError(
            f"adapter.target={expression}: matches no whole name of a linear layer, such as {example}{hint}"
        )
    if any(module is head for module in found):
        raise ValueError(f"adapter.target={expression} matches the output head, which takes no adapter: leave it out")
    if outside := next((name for name in matched if not re.match(beginning, name)), None):
        raise ValueError(
            f"adapter.target={expression} matches {outside}, which is no part of the text model: begin it with "
            f"{beginning}"
        )
    if other := next((name for name in matched if name not in layers), None):
        raise ValueError(f"adapter.target={expression} matches {other}, which is not a linear layer: narrow it")


def _shared(model: PreTrainedModel, found: Mapping[str, nn.Module]) -> tuple[str, str] | None:
    """A module of these and one outside of them that have a parameter in common; None: there is none."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            first = owners.setdefault(id(parameter), name)
            if first != name:
                inside = [each for each in (first, name) if any(f"{each}.".startswith(f"{whole}.") for whole in found)]
                if inside:
                    return inside[0], name if inside[0] == first else first
    return None
