"""Linear layers whose names peft takes for those of experts, such as `gate_proj` in DeepSeek V3's shared experts.

On mixtures whose experts were layers in transformers 4, peft 0.21 reads a target by the last part of its name, in
lists, expressions and `all-linear` alike, and adapts the stacked experts of now instead (its
`_convert_peft_config_moe`). So no target can name these layers, but `target_parameters` can name their weights. The
matrices have the same names and shapes then:

    layers.1.mlp.shared_experts.gate_proj.weight  ->  ...shared_experts.gate_proj.lora_A.weight, lora_B.weight

A folder names them so, and plain peft, which adds their product to a copy of the weight, computes the same. Here such a
layer is trained as any other linear layer, without a copy. peft has no dropout, DoRA or base in 4 bits for parameters:
there these layers go without.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import transformers_weight_conversion as conversion
from torch import nn
from transformers import PreTrainedModel

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.quantized import in_4_bits
from llmtrain.models.adapters.targets import (
    ALL_LINEAR,
    WEIGHT,
    by_weight,
    has_ending,
    is_in_layers,
    last_parts,
    linear_layers,
    renamed_layers,
)


def weights_to_name(model: PreTrainedModel, config: AdapterConfig, head: nn.Module | None) -> list[str]:
    """The weights that `target_parameters` is to name, of layers that an adapter covers and no target can name.

    Raises ValueError for a layer that is named by itself on a base in 4 bits.
    """
    if not by_weight(config):
        return []
    chosen = config.chosen_layers()
    weights = [
        f"{name}{WEIGHT}"
        for name, layer in renamed_layers(model).items()
        if layer is not head
        and is_in_layers(name, chosen)
        and (_is_named(name, config.target) or has_ending(f"{name}{WEIGHT}", *config.target_parameters))
    ]
    if not in_4_bits(model):
        return weights
    for weight in weights:
        if config.target != ALL_LINEAR or has_ending(weight, *config.target_parameters):
            raise ValueError(
                f"adapter.target: peft takes the name of {weight.removesuffix(WEIGHT)} for one of "
                f"{model.config.model_type}'s experts, and adapts the layer only on a base that is not in 4 bits: "
                "leave it out, or model.quantize"
            )
    return []


def _is_named(name: str, target: str | list[str]) -> bool:
    if isinstance(target, str):
        return target == ALL_LINEAR or re.fullmatch(target, name) is not None
    return has_ending(name, *target)


def left_out(model: PreTrainedModel, config: AdapterConfig) -> set[str]:
    """The last parts of the names of linear layers that `all-linear` does without, as peft takes them for experts."""
    if config.target != ALL_LINEAR or weights_to_name(model, config, model.get_output_embeddings()):
        return set()
    return last_parts(renamed_layers(model))


def without_untrained(lora: LoraConfig, layers: Iterable[str], trained: Iterable[str]) -> None:
    """Leave out of an adapter the weights of `layers` that no name of what was trained belongs to, in place.

    So a base in 4 bits had them, and a run of an earlier version.
    """
    held = {name.partition(".lora_")[0] for name in trained}
    absent = {f"{layer}{WEIGHT}" for layer in layers if layer not in held}
    lora.target_parameters = [name for name in lora.target_parameters or [] if name not in absent] or None


def put_adapter(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """A model with an adapter in place, its linear layers as layers also where `lora` names their weights."""
    linear = linear_layers(model)
    layers = [name.removesuffix(WEIGHT) for name in lora.target_parameters or [] if name.removesuffix(WEIGHT) in linear]
    if not layers:
        return _adapted(model, lora)
    inside = copy.copy(lora)
    inside.target_modules = [*(lora.target_modules or ()), *layers]
    inside.target_parameters = [
        name for name in lora.target_parameters or [] if name.removesuffix(WEIGHT) not in layers
    ]
    with _targets_as_they_are():
        adapted = _adapted(model, inside)
    adapted.peft_config["default"] = lora
    return adapted


def _adapted(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    adapted = get_peft_model(model, lora)
    assert isinstance(adapted, PeftModel)
    return adapted


@contextmanager
def _targets_as_they_are() -> Iterator[None]:
    """Let peft rename no target."""
    renaming = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = renaming
