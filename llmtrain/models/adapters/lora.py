"""Adapters: small trained matrices beside a frozen base (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024), through peft.

    y = W x + scale * B A x

The adapter goes into the model in place, between loading it and wrapping it with its loss, so what is trained is
still the one transformers model, and only what is trainable is saved and exported.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmtrain.config.sections import AdapterConfig
from llmtrain.models.adapters.quantized import num_weights
from llmtrain.models.adapters.token_rows import train_rows


def add_adapter(model: PreTrainedModel, config: AdapterConfig, new_token_ids: Sequence[int], seed: int) -> PeftModel:
    """Freeze a model and put an adapter into it, in fp32 and initialised from `seed`; the model wrapped by peft.

    The rows of `new_token_ids`, tokens that the base does not know, are trained too. Raises ValueError for targets
    that match no linear layer, or the head.
    """
    torch.manual_seed(seed)
    with expected_warnings():
        adapted = get_peft_model(model, lora_config(model, config, model.get_output_embeddings()))
    if new_token_ids:
        train_rows(model, new_token_ids)
    return adapted


def lora_config(model: PreTrainedModel, config: AdapterConfig, head: nn.Module | None) -> LoraConfig:
    """peft's configuration of an adapter for a model; `head` takes none. Raises ValueError as `add_adapter` does."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    if config.target == "all-linear":
        targeted = [module for module in layers.values() if module is not head]
    else:
        names = sorted({name.rsplit(".", 1)[-1] for name, module in layers.items() if module is not head})
        targeted = []
        for target in config.target:
            found = [module for name, module in layers.items() if f".{name}".endswith(f".{target}")]
            if not found:
                raise ValueError(
                    f"adapter.target={target}: this model has no linear layer of that name; it has {', '.join(names)}"
                )
            if any(module is head for module in found):
                raise ValueError(f"adapter.target={target} is the output head, which takes no adapter: leave it out")
            targeted += found
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=int(config.alpha) if float(config.alpha).is_integer() else config.alpha,  # type: ignore[arg-type]
        use_rslora=config.rslora,
        use_dora=config.kind == "dora",
        lora_dropout=config.dropout,
        target_modules=config.target,
        fan_in_fan_out=all(isinstance(module, Conv1D) for module in targeted),
    )


@contextmanager
def expected_warnings() -> Iterator[None]:
    """Hide the warning of transformers 5.23 about a property that peft 0.21 still reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def adapter_report(model: nn.Module, optimizer_bytes: int) -> str:
    """One line on what is trained and the memory it takes; `optimizer_bytes`: optimizer state per trained weight."""
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    num_trained, num_all = (sum(num_weights(p) for p in group) for group in (trained, parameters))
    trained_mb, all_mb = (sum(p.numel() * p.element_size() for p in group) / 1e6 for group in (trained, parameters))
    return (
        f"training {num_trained:,} of {num_all:,} weights ({num_trained / num_all:.2%}, {trained_mb:,.1f} MB on disk); "
        f"memory: {all_mb:,.1f} MB of weights, {trained_mb:,.1f} MB of gradients, "
        f"{num_trained * optimizer_bytes / 1e6:,.1f} MB of optimizer state"
    )
