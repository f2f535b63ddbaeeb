"""Adapters: small trained matrices beside a frozen base (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024), through peft.

    y = W x + scale * B A x

The adapter goes into the model in place, between loading it and wrapping it with its loss, so what is trained is
still the one transformers model, and only what is trainable is saved and exported.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.parameters import target_parameters
from llmtrain.models.adapters.quantized import num_weights
from llmtrain.models.adapters.renamed import put_adapter, weights_to_name
from llmtrain.models.adapters.targets import (
    ALL_LINEAR,
    WEIGHT,
    linear_layers,
    router_layers,
    saved_modules,
    target_modules,
)
from llmtrain.models.adapters.token_rows import train_rows


def add_adapter(model: PreTrainedModel, config: AdapterConfig, new_token_ids: Sequence[int], seed: int) -> PeftModel:
    """Freeze a model and put an adapter into it, in fp32 and initialised from `seed`; the model wrapped by peft.

    The rows of `new_token_ids`, tokens that the base does not know, are trained too, and the modules of
    `modules_to_save` in full. Raises ValueError for targets, layers or modules that match nothing, or the head.
    """
    torch.manual_seed(seed)
    lora = lora_config(model, config, model.get_output_embeddings())
    lora.modules_to_save = None  # peft would hold them twice
    if lora.target_modules:
        lora.exclude_modules = sorted({*_layers_in_full(model, config), *router_layers(model)}) or None
    with expected_warnings():
        adapted = put_adapter(model, lora)
    train_in_full(model, config.modules_to_save)
    if new_token_ids:
        train_rows(model, new_token_ids)
    return adapted


def lora_config(model: PreTrainedModel, config: AdapterConfig, head: nn.Module | None) -> LoraConfig:
    """peft's configuration of an adapter for a model; `head` takes none. Raises ValueError as `add_adapter` does."""
    targets, parameters = target_modules(model, config, head), target_parameters(model, config)
    in_full, kept = _layers_in_full(model, config), router_layers(model)
    weights = [name for name in weights_to_name(model, config, head) if name.removesuffix(WEIGHT) not in in_full]
    parameters = [*parameters, *weights]
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=int(config.alpha) if float(config.alpha).is_integer() else config.alpha,  # type: ignore[arg-type]
        use_rslora=config.rslora,
        use_dora=config.kind == "dora",
        lora_dropout=config.dropout,
        target_modules=targets,
        target_parameters=parameters or None,
        layers_to_transform=config.chosen_layers(),
        modules_to_save=[*config.modules_to_save] or None,  # peft adds to it
        exclude_modules=sorted(kept) or None if targets else None,
    )
    covered = [
        module
        for name, module in linear_layers(model).items()
        if name not in in_full
        and name not in kept
        and (module is not head if targets == ALL_LINEAR else _covers(lora, name))
    ]
    if not covered and (targets or not parameters):
        if not config.modules_to_save:
            inside = "" if config.layers is None else f" in adapter.layers={config.layers}"
            raise ValueError(f"adapter.target: names no linear layer that takes an adapter{inside}")
        raise ValueError(
            f"adapter.modules_to_save={', '.join(config.modules_to_save)} holds every layer that adapter.target names: "
            "leave one out"
        )
    lora.fan_in_fan_out = bool(covered) and all(isinstance(module, Conv1D) for module in covered)
    return lora


def _layers_in_full(model: PreTrainedModel, config: AdapterConfig) -> set[str]:
    """The linear layers that are trained in full, which take no adapter, as peft has it.

    Raises ValueError for a part of a name, by which peft would give a layer both.
    """
    saved = saved_modules(model, config.modules_to_save)
    inside = {name for name in linear_layers(model) if any(f"{name}.".startswith(f"{whole}.") for whole in saved)}
    both = LoraConfig(target_modules=".*", modules_to_save=config.modules_to_save or None)
    if twice := next((name for name in sorted(inside) if _covers(both, name)), None):
        last = twice.rsplit(".", 1)[-1]
        raise ValueError(f"adapter.modules_to_save: {last} is named by a part of its name: write it out")
    return inside


def _covers(lora: LoraConfig, name: str) -> bool:
    """Whether peft gives a module an adapter: it answers with a match, True, or a mark of one that is left out."""
    found = check_target_module_exists(lora, name)
    return found is True or isinstance(found, re.Match)


def train_in_full(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Make the modules of `adapter.modules_to_save` trainable in place, in fp32, on weights of their own."""
    for whole in saved_modules(model, names).values():
        for module in whole.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, nn.Parameter(parameter.detach().clone().float()))


@contextmanager
def expected_warnings() -> Iterator[None]:
    """Hide what transformers 5.23 says of a property that peft 0.21 still reads, and what peft says of fused experts,
    as it opens an adapter on a mixture that was made before they were fused."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*_pattern keys did not match .*gate_up_proj", RuntimeWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def adapter_report(model: nn.Module, optimizer_bytes: int, *, recomputes: bool = False) -> str:
    """One line on what is trained and the memory it takes; `optimizer_bytes`: optimizer state per trained weight.

    `recomputes`: backward computes activations again, so that one layer's are in memory at a time.
    """
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    num_trained, num_all = (sum(num_weights(p) for p in group) for group in (trained, parameters))
    trained_mb, all_mb = (sum(p.numel() * p.element_size() for p in group) / 1e6 for group in (trained, parameters))
    return (
        f"training {num_trained:,} of {num_all:,} weights ({num_trained / num_all:.2%}, {trained_mb:,.1f} MB on disk); "
        f"memory: {all_mb:,.1f} MB of weights, {trained_mb:,.1f} MB of gradients, "
        f"{num_trained * optimizer_bytes / 1e6:,.1f} MB of optimizer state{_of_copies(model, recomputes)}"
    )


def _of_copies(model: nn.Module, recomputes: bool) -> str:
    """The memory of the copies of experts that peft adds an adapter's product to, kept until backward."""
    wrappers = [module for module in model.modules() if isinstance(module, ParamWrapper)]
    by_layer: dict[nn.Module, int] = {}
    for wrapper in wrappers:
        layer, parameter = wrapper.get_base_layer(), wrapper.get_param()
        by_layer[layer] = by_layer.get(layer, 0) + parameter.numel() * parameter.element_size()
    if not by_layer:
        return ""
    one, all_ = max(by_layer.values()), sum(by_layer.values())
    if recomputes:
        return f", {one / 1e6:,.1f} MB for the copy of a layer's experts"
    return (
        f", {all_ / 1e6:,.1f} MB for copies of experts, of which train.activation_checkpointing would keep one "
        f"layer's, {one / 1e6:,.1f} MB"
    )
