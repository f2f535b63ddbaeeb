"""The short way through LoRA's layers is peft's own arithmetic, and is taken only where it is."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_llama import tiny_llama
from torch import Tensor, nn
from transformers import OlmoConfig, OlmoForCausalLM, PreTrainedModel

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.cpu.lora import FusedLoraLinear, fuse_adapters


def adapted(**settings: object) -> PreTrainedModel:
    """A tiny Llama with an adapter whose second matrix is not zero."""
    model = tiny_llama(vocab_size=40, intermediate_size=24, attention_bias=True)
    add_adapter(model, AdapterConfig.model_validate({"kind": "lora", "rank": 4, "alpha": 12} | settings), (), 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def loss_and_gradients(model: PreTrainedModel, precision: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    ids = torch.randint(40, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = model(ids, labels=ids).loss
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return loss.detach(), list(torch.autograd.grad(loss, trained))


@pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"target": ["q_proj", "down_proj"]}])
def test_loss_and_gradients_are_those_of_peft(settings: dict[str, object]) -> None:
    stock = adapted(**settings)
    fused = copy.deepcopy(stock)
    assert fuse_adapters(fused) == (4 if settings.get("target") else 14)
    loss, gradients = loss_and_gradients(stock)
    fused_loss, fused_gradients = loss_and_gradients(fused)
    torch.testing.assert_close(fused_loss, loss, rtol=0, atol=1e-6)
    for fused_gradient, gradient in zip(fused_gradients, gradients, strict=True):
        torch.testing.assert_close(fused_gradient, gradient, rtol=1e-5, atol=1e-6)


def test_under_autocast_it_follows_the_exact_gradients_as_closely_as_peft_does() -> None:
    stock = adapted()
    fused = copy.deepcopy(stock)
    fuse_adapters(fused)
    _, exact = loss_and_gradients(stock)
    errors = []
    for model in (stock, fused):
        _, rounded = loss_and_gradients(model, torch.bfloat16)
        errors.append(sum(float((one - other).norm()) for one, other in zip(rounded, exact, strict=True)))
    assert errors[1] < 1.2 * errors[0]


def test_names_and_parameters_stay() -> None:
    model = adapted()
    names = [name for name, _ in model.named_parameters()]
    fuse_adapters(model)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"kind": "dora"}])
def test_other_adapters_stay_as_they_are(settings: dict[str, object]) -> None:
    assert fuse_adapters(adapted(**settings)) == 0


def test_a_disabled_adapter_leaves_the_base() -> None:
    model = adapted()
    fuse_adapters(model)
    layer = next(module for module in model.modules() if isinstance(module, FusedLoraLinear))
    x = torch.randn(3, 16)
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(x), layer.get_base_layer()(x))


def test_a_model_may_change_the_product_in_place() -> None:
    shape = OlmoConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, clip_qkv=0.01
    )
    stock = OlmoForCausalLM(shape)
    add_adapter(stock, AdapterConfig.model_validate({"kind": "lora", "rank": 4}), (), 0)
    fused = copy.deepcopy(stock)
    assert fuse_adapters(fused)
    for mine, theirs in zip(loss_and_gradients(fused), loss_and_gradients(stock), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
