"""Models of one base hold it in memory once, and only what is frozen and equal."""

from __future__ import annotations

import torch
from tiny_llama import tiny_llama
from torch import nn
from transformers import LlamaForCausalLM

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.adapters.weight_sharing import share_equal, shared_copy

LORA = AdapterConfig(kind="lora", rank=2, alpha=4)


def tiny() -> LlamaForCausalLM:
    return tiny_llama(vocab_size=50, tie_word_embeddings=True)


def addresses(model: nn.Module) -> dict[str, int]:
    return {name.replace(".base_layer", ""): parameter.data_ptr() for name, parameter in model.named_parameters()}


def test_equal_frozen_weights_come_to_stand_in_the_same_memory() -> None:
    base, other = tiny(), tiny()
    before = sum(parameter.numel() * 4 for parameter in other.parameters())
    for model in (base, other):
        add_adapter(model, LORA, (), 0)
    other.requires_grad_(False)
    logits = other(torch.arange(9)[None]).logits
    assert share_equal(other, base) == before
    shared = {name for name, address in addresses(other).items() if addresses(base)[name] == address}
    assert shared == {name for name in addresses(base) if ".lora_" not in name}
    assert torch.equal(other(torch.arange(9)[None]).logits, logits)


def test_weights_that_differ_stay_apart() -> None:
    base, other = tiny().requires_grad_(False), tiny().requires_grad_(False)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[3, 4] += 1e-3
    share_equal(other, base)
    apart = {name for name, address in addresses(other).items() if addresses(base)[name] != address}
    assert apart == {"model.layers.0.mlp.up_proj.weight"}


def test_what_is_trained_is_never_shared() -> None:
    base, other = tiny(), tiny().requires_grad_(False)
    assert share_equal(other, base) == 0
    base.requires_grad_(False)
    other.requires_grad_(True)
    assert share_equal(other, base) == 0


def test_a_shared_copy_saves_nothing_more() -> None:
    base = tiny().requires_grad_(False)
    assert share_equal(shared_copy(base), base) == 0
