"""Which parameters hold transposed, fused or stacked matrices, and that Muon trains them as separate ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmtrain.config.sections import OptimConfig
from llmtrain.models.matrices import matrices_of
from llmtrain.models.param_kinds import parameters_by_kind
from llmtrain.protocols import Matrices, MatrixLayout
from llmtrain.train.optim import make_optimizer

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def model_of(model_type: str, **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **config))


def layouts_of(model: PreTrainedModel) -> dict[str, MatrixLayout]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter].split(".", 3)[-1]: layout for parameter, layout in matrices_of(model).layouts.items()}


def test_a_llama_has_plain_matrices_only() -> None:
    assert matrices_of(model_of("llama")) == ({}, [])


def test_gpt2_has_transposed_matrices_and_fused_attention() -> None:
    assert layouts_of(model_of("gpt2")) == {
        "attn.c_attn.weight": MatrixLayout(transposed=True, parts=(16, 16, 16)),
        "attn.c_proj.weight": MatrixLayout(transposed=True),
        "mlp.c_fc.weight": MatrixLayout(transposed=True),
        "mlp.c_proj.weight": MatrixLayout(transposed=True),
    }


@pytest.mark.parametrize(
    ("model_type", "config", "groups", "parts"),
    [
        ("gpt_neox", {}, 4, (4, 4, 4)),
        ("bloom", {"n_head": 4}, 4, (4, 4, 4)),
        ("persimmon", {}, 4, (4, 4, 4)),
        ("falcon", {"multi_query": True}, 1, (16, 4, 4)),
        ("falcon", {"multi_query": False, "alibi": False}, 4, (4, 4, 4)),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, 2, (8, 4, 4)),
        ("gpt_bigcode", {"multi_query": True}, 1, (16, 4, 4)),
        ("gpt_bigcode", {"multi_query": False}, 4, (4, 4, 4)),
        ("phi3", {"num_key_value_heads": 2, "pad_token_id": 0}, 1, (16, 8, 8)),
        ("mpt", {"d_model": 16, "n_heads": 4, "n_layers": 1}, 1, (16, 16, 16)),
    ],
)
def test_query_key_and_value_are_found_side_by_side(
    model_type: str, config: dict[str, Any], groups: int, parts: tuple[int, ...]
) -> None:
    model = model_of(model_type, **config)
    found = [layout for name, layout in layouts_of(model).items() if "gate_up" not in name]
    assert found == [MatrixLayout(groups=groups, parts=parts)]
    assert not matrices_of(model).unknown


def test_the_matrices_of_a_fused_gate_are_its_halves() -> None:
    model = model_of("phi3", pad_token_id=0)
    assert layouts_of(model)["mlp.gate_up_proj.weight"] == MatrixLayout(parts=(24, 24))


@pytest.mark.parametrize(
    ("model_type", "config", "gate_up", "down"),
    [
        (
            "mixtral",
            {"num_local_experts": 3, "num_key_value_heads": 2},
            MatrixLayout(stacked=True, parts=(24, 24)),
            MatrixLayout(stacked=True),
        ),
        (
            "gpt_oss",
            {"num_local_experts": 3, "num_key_value_heads": 2, "head_dim": 4},
            MatrixLayout(transposed=True, stacked=True, groups=24, parts=(1, 1)),
            MatrixLayout(transposed=True, stacked=True),
        ),
    ],
)
def test_experts_are_stacks_of_matrices(
    model_type: str, config: dict[str, Any], gate_up: MatrixLayout, down: MatrixLayout
) -> None:
    found = layouts_of(model_of(model_type, **config))
    assert {name.rpartition(".")[2]: layout for name, layout in found.items()} == {
        "gate_up_proj": gate_up,
        "down_proj": down,
    }


def test_what_is_frozen_has_no_layout_and_what_looks_fused_is_named() -> None:
    model = model_of("gpt2")
    model.config.model_type = "another"
    assert matrices_of(model).unknown == ["c_attn"]
    assert matrices_of(model.requires_grad_(False)) == ({}, [])


class Separate(nn.Module):
    """The matrices of a Conv1D as separate linear layers, in turn."""

    def __init__(self, fused: Conv1D, number: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for weight, bias in zip(fused.weight.chunk(number, dim=1), fused.bias.chunk(number), strict=True):
            layer = nn.Linear(*weight.shape)
            layer.weight.data, layer.bias.data = weight.detach().T.contiguous(), bias.detach().clone()
            self.layers.append(layer)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([layer(hidden) for layer in self.layers], dim=-1)


def losses_of(model: PreTrainedModel, matrices: Matrices) -> list[float]:
    """The losses of a short run with Muon on one batch."""
    optimizer = make_optimizer(
        parameters_by_kind(model), OptimConfig(name="muon", muon_lr=0.2), layouts=matrices.layouts
    )
    ids = torch.randint(40, (4, 20), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(15):
        loss = model.eval()(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_gpt2_learns_what_its_twin_of_separate_linear_layers_learns() -> None:
    twin = model_of("gpt2")
    for name, module in list(twin.named_modules()):
        if isinstance(module, Conv1D):
            twin.set_submodule(name, Separate(module, 3 if name.endswith("c_attn") else 1))
    assert matrices_of(twin) == ({}, [])
    wanted = losses_of(twin, matrices_of(twin))
    model = model_of("gpt2")
    assert losses_of(model, matrices_of(model)) == pytest.approx(wanted, rel=1e-4)
    as_one_matrix = losses_of(model_of("gpt2"), Matrices({}, []))
    assert max(abs(one - other) for one, other in zip(as_one_matrix, wanted, strict=True)) > 0.01
