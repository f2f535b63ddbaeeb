"""Norms and gated MLPs that take the short way give what they gave, and others are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmtrain.models.cpu.layers import fuse_layers

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}


def model_of(architecture: str, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **SHAPE | changes))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def loss_and_gradients(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    loss = model(ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("architecture", "norms", "mlps"),
    [("llama", 5, 2), ("mistral", 5, 2), ("qwen3", 9, 2), ("smollm3", 5, 2), ("gemma2", 0, 0), ("phi3", 5, 0)],
)
def test_loss_and_gradients_stay_those_of_transformers(architecture: str, norms: int, mlps: int) -> None:
    stock = model_of(architecture)
    fused = copy.deepcopy(stock)
    assert fuse_layers(fused) == (norms, mlps)
    loss, gradients = loss_and_gradients(stock)
    fused_loss, fused_gradients = loss_and_gradients(fused)
    torch.testing.assert_close(fused_loss, loss, rtol=0, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fused_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_doing_it_twice_changes_nothing() -> None:
    model = model_of("llama")
    fuse_layers(model)
    assert fuse_layers(model) == (0, 0)


def test_other_activations_are_left_alone() -> None:
    assert fuse_layers(model_of("llama", hidden_act="gelu")) == (5, 0)


def test_in_half_precision_the_stock_norm_is_taken() -> None:
    model = model_of("llama").to(torch.bfloat16)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        expected = model(ids).logits
        assert fuse_layers(model)[1] == 2
        torch.testing.assert_close(model(ids).logits, expected)


def test_a_model_in_training_stays_in_training() -> None:
    model = model_of("llama").train()
    fuse_layers(model)
    assert model.training and all(module.training for module in model.modules())


@pytest.mark.parametrize("frozen", [(), ("gate_proj",), ("down_proj",), ("gate_proj", "up_proj", "down_proj")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_weights_and_activation_checkpointing_leave_the_other_gradients(
    frozen: tuple[str, ...], checkpointing: bool
) -> None:
    stock = model_of("llama").train()
    for name, parameter in stock.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    fused = copy.deepcopy(stock)
    fuse_layers(fused)
    if checkpointing:
        fused.activation_checkpointing_enable({"use_reentrant": False})
    loss_and_gradients(stock)
    _, gradients = loss_and_gradients(fused)
    for name, parameter in stock.named_parameters():
        assert (gradients[name] is None) == (parameter.grad is None)
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("trains", "widths"), [(True, 16 + 2 * 24), (False, 2 * 24)])
def test_a_gated_mlp_keeps_its_input_and_what_it_gates_and_no_more(trains: bool, widths: int) -> None:
    model = model_of("llama").requires_grad_(trains)
    fuse_layers(model)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(0 if tensor.data_ptr() in weights else tensor.numel())
        return tensor

    x = torch.randn(1, 10, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model.layers[0].mlp(x)
    assert sum(kept) == 10 * widths
