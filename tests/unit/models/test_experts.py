"""Mixtures of experts: the balance loss of their configuration, and the router's precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from one_by_one import SMALL, documents, packed
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.attention import ATTENTION
from llmtrain.models.experts import balance_loss, routers
from llmtrain.models.paths.path import Path
from llmtrain.models.trunk import pack_inputs, run_routed
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.objectives.next_token import NextToken

CPU = torch.device("cpu")
FIELDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "router_aux_loss_coef": 0.5,
    },
}


def make_model(architecture: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = AutoConfig.for_model(architecture, **SMALL | FIELDS[architecture] | changes)
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=ATTENTION)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0) if parameter.ndim > 1 else None
    return model


@pytest.mark.parametrize("architecture", list(FIELDS))
def test_loss_and_gradients_are_those_of_transformers_with_its_balance_loss(architecture: str) -> None:
    model = make_model(architecture)
    stock = copy.deepcopy(model)
    stock.set_attn_implementation("eager")
    text = documents()[3]
    expected = stock(text[None], labels=text[None], output_router_logits=True)
    expected.loss.backward()
    module = wrap_causal_lm(model, "segments", 64, CPU).train()
    batch = packed([text])
    totals = {"tokens": len(text) - 1, "weight": len(text) - 1, "input_tokens": len(text)}
    loss, metrics = NextToken().loss(module, batch, totals)
    loss.backward()
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(metrics["balance_loss"], expected.aux_loss.detach())
    torch.testing.assert_close(metrics["loss"], expected.loss.detach() - 0.5 * expected.aux_loss.detach())
    theirs = dict(stock.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_microbatch_counts_by_its_tokens() -> None:
    module = wrap_causal_lm(make_model("mixtral"), "segments", 64, CPU).train()
    parts = [packed([text]) for text in documents() if len(text) > 1]
    total = sum(part.num_tokens for part in parts)
    totals = {"tokens": 1.0, "weight": 1.0, "input_tokens": total}
    shares = [NextToken().loss(module, part, totals)[1]["balance_loss"] for part in parts]
    alone = [float(module(part).balance.loss.detach()) for part in parts]
    expected = sum(part.num_tokens * each for part, each in zip(parts, alone, strict=True)) / total
    assert max(alone) - min(alone) > 0.01
    assert float(sum(shares)) == pytest.approx(expected)


def test_an_evaluation_has_no_balance_loss() -> None:
    module = wrap_causal_lm(make_model("mixtral"), "segments", 64, CPU).eval()
    assert module(packed(documents())).balance is None


def test_padding_is_no_token() -> None:
    model = make_model("mixtral")
    in_packs = wrap_causal_lm(copy.deepcopy(model), "segments", 64, CPU).train()(packed(documents()))
    path = Path("padded", {}, "sdpa")
    in_rows = CausalLMLoss(path.put_into(model), "padded", path=path).train()(packed(documents()))
    torch.testing.assert_close(in_rows.balance.loss, in_packs.balance.loss)


@pytest.mark.parametrize(
    ("architecture", "changes"), [("mixtral", {"router_aux_loss_coef": 0.0}), ("qwen3_moe", {"num_experts": 0})]
)
def test_none_without_a_coefficient_or_experts(architecture: str, changes: dict[str, Any]) -> None:
    assert balance_loss(make_model(architecture, **changes)) is None


@pytest.mark.parametrize("half", [torch.float32, torch.bfloat16])
def test_the_router_computes_in_fp32_under_autocast(half: torch.dtype) -> None:
    """`half`: the type that its weights are held in."""
    model = make_model("mixtral")
    module = wrap_causal_lm(model, "segments", 64, CPU)
    for router in routers(model):
        router.to(half)
    with torch.autocast("cpu", torch.bfloat16):
        _, logits = run_routed(model.base_model, pack_inputs(packed(documents()), module.kernel))
    assert {layer.dtype for layer in logits} == {torch.float32}
    assert all((layer != layer.bfloat16()).any() for layer in logits)


def test_routers_take_no_adapter() -> None:
    torch.manual_seed(0)
    fields = SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phimoe", **fields), attn_implementation=ATTENTION)
    add_adapter(model, AdapterConfig(kind="lora", rank=2), (), 0)
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert {name.rsplit(".", 1)[-1] for name in adapted} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(routers(model)) == 2
    wrap_causal_lm(model, "segments", 64, CPU)
