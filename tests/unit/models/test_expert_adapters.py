"""Adapters on experts: what is trained with which gradients, what all-linear means on a mixture, what is refused."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import adapter_report, add_adapter
from llmtrain.models.attention import ATTENTION
from llmtrain.models.cpu.prepare import prepare_layers
from llmtrain.models.folders import adapter_trial
from llmtrain.models.folders.adapter_trial import require_loading
from llmtrain.models.folders.continued import AdapterPlan, continued
from llmtrain.models.heads.score import SCORE
from llmtrain.models.matrices import matrices_of
from llmtrain.models.wrappers.actor_critic import ValueHead
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.models.wrappers.critic_init import start_as_reward
from llmtrain.train.muon import matrices
from tests.parity.test_transformers import SMALL, documents, gradients, packed, stock_loss

CPU = torch.device("cpu")
BOTH = ["experts.gate_up_proj", "experts.down_proj"]
FIELDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 24,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "llama": {},
}


def make_model(architecture: str, attention: str = "eager") -> PreTrainedModel:
    torch.manual_seed(0)
    shape = AutoConfig.for_model(architecture, **SMALL | FIELDS[architecture])
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0) if parameter.ndim > 1 else None
    return model.eval()


def on_experts(**keys: Any) -> AdapterConfig:
    return AdapterConfig(**({"kind": "lora", "rank": 3, "alpha": 6, "target_parameters": BOTH} | keys))


def move(model: nn.Module) -> None:
    """Away from the start, where the adapter adds nothing."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def adapted_layers(model: nn.Module) -> set[str]:
    return {name.replace(".base_layer", "") for name, each in model.named_modules() if isinstance(each, LoraLayer)}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral", "gpt_oss", "olmoe"])
def test_packed_loss_and_each_gradient_are_those_of_peft_one_by_one(architecture: str, checkpointed: bool) -> None:
    model, stock, texts = make_model(architecture, ATTENTION), make_model(architecture), documents()
    torch.manual_seed(0)  # as `add_adapter` is given it
    plain = get_peft_model(stock, LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], target_parameters=BOTH))
    add_adapter(model, on_experts(target=["q_proj"]), (), 0)
    for each in (plain, model):
        move(each)
    prepare_layers(model, CPU)
    module = wrap_causal_lm(model, "segments", 64, CPU)
    if checkpointed:
        model.base_model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
    result = module(packed(texts))
    result.objective.backward()
    expected = sum((stock_loss(stock, text) for text in texts), torch.zeros(()))
    expected.backward()
    torch.testing.assert_close(result.objective, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(model), gradients(stock)
    assert set(ours) == set(theirs) and len(ours) == 12
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_the_report_counts_the_copies_of_experts_that_backward_waits_for() -> None:
    model = make_model("qwen3_moe")
    add_adapter(model, on_experts(target=["q_proj"]), (), 0)
    experts = model.model.layers[0].mlp.experts.get_base_layer()
    num_bytes = sum(weight.numel() * weight.element_size() for weight in experts.parameters())
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.nbytes() * 3 >= num_bytes:  # one of the two matrices
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(documents()[3][None]).logits
    assert outputs.requires_grad and sum(kept.values()) == 2 * num_bytes  # of two layers
    line = adapter_report(model, 8)
    assert line.endswith(
        f", {2 * num_bytes / 1e6:.1f} MB for copies of experts, of which train.activation_checkpointing would keep one "
        f"layer's, {num_bytes / 1e6:.1f} MB"
    )
    assert adapter_report(model, 8, recomputes=True).endswith(
        f" {num_bytes / 1e6:.1f} MB for the copy of a layer's experts"
    )


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_it_starts_as_the_base_with_each_experts_inputs_in_scale(architecture: str) -> None:
    model = make_model(architecture)
    before = model(documents()[3][None]).logits.detach()
    add_adapter(model, on_experts(target=[]), (), 0)
    assert torch.equal(model(documents()[3][None]).logits, before)
    wrappers = [module for module in model.modules() if isinstance(module, ParamWrapper)]
    assert [module.parameter_name for module in wrappers] == ["down_proj", "gate_up_proj"] * 2
    for wrapper in wrappers:
        a = wrapper.lora_A["default"].weight
        inputs = 64 if wrapper.parameter_name == "down_proj" else 32
        assert a.shape == (4 * 3, inputs) and 0.9 / math.sqrt(inputs) < a.abs().max() <= 1 / math.sqrt(inputs)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral", "olmoe", "gpt_oss"])
def test_all_linear_of_a_mixture_is_its_linear_layers_without_router_and_experts(architecture: str) -> None:
    model = make_model(architecture)
    add_adapter(model, AdapterConfig(kind="dora", dropout=0.1), (), 0)
    assert {name.split(".", 3)[-1] for name in adapted_layers(model)} == {
        f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")
    }


def test_an_expression_keeps_to_its_layers() -> None:
    model = make_model("mixtral")
    add_adapter(model, AdapterConfig(kind="lora", target=r".*\.1\..*\.(q|v)_proj"), (), 0)
    assert adapted_layers(model) == {f"model.layers.1.self_attn.{name}_proj" for name in "qv"}


def test_layers_hold_for_experts() -> None:
    model = make_model("mixtral")
    add_adapter(model, on_experts(target=["q_proj"], layers=[1]), (), 0)
    assert adapted_layers(model) == {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.experts"}


def test_muon_updates_the_matrices_of_each_expert() -> None:
    model = make_model("mixtral")
    add_adapter(model, on_experts(target=[]), (), 0)
    layouts = matrices_of(model).layouts
    wrapper = next(module for module in model.modules() if isinstance(module, ParamWrapper))
    a, b = (part["default"].weight for part in (wrapper.lora_A, wrapper.lora_B))
    nn.init.normal_(b)
    left, right = matrices(b, layouts[b])[0], torch.stack([each[0] for each in matrices(a, layouts[a])])
    delta = wrapper.scaling["default"] * left.flatten(1, 2) @ right.flatten(1, 2)
    torch.testing.assert_close(delta, wrapper.get_delta_weight("default"))


@pytest.mark.parametrize(
    ("architecture", "keys", "said"),
    [
        (
            "mixtral",
            {"target_parameters": ["experts.w1"]},
            "has no parameter of that name; it has experts.down_proj, e",
        ),
        (
            "llama",
            {"target_parameters": ["experts.w1"]},
            "it has no experts in stacks: name linear layers in adapter.t",
        ),
        ("mixtral", {"target_parameters": ["gate.weight"]}, "layers.0.mlp.gate.weight is no stack of matrices; it has"),
        ("gpt_oss", {"target_parameters": ["gate_up_proj_bias"]}, "experts.gate_up_proj_bias is no stack of matrices"),
        (
            "deepseek_v3",
            {"layers": [0]},
            "adapter.target_parameters=experts.gate_up_proj: no layer of adapter.layers has",
        ),
        (
            "mixtral",
            {"modules_to_save": ["mlp"]},
            "layers.0.mlp holds model.layers.0.mlp.experts.gate_up_proj, which ad",
        ),
        (
            "mixtral",
            {"target": ["q_proj"], "modules_to_save": ["q_proj"]},
            "modules_to_save=q_proj holds every layer that adapter.target names: leave one out",
        ),
        (
            "mixtral",
            {"target": ["experts.down_proj"], "target_parameters": []},
            "no linear layer of that name; .*; experts are named by adapter.target_parameters",
        ),
    ],
)
def test_what_is_no_experts_parameter_says_what_is(architecture: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        add_adapter(make_model(architecture), on_experts(**{"target": []} | keys), (), 0)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("adapter.")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "dora"}, "kind=dora: peft has none on target_parameters"),
        ({"dropout": 0.1}, "dropout=0.1: peft has none on target_parameters"),
        ({"target": [], "target_parameters": []}, "target: names no module"),
    ],
)
def test_what_experts_cannot_have_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        on_experts(**keys)


@pytest.mark.parametrize(
    ("method", "broken", "said"),
    [
        ("_activate_lora", lambda *_: nullcontext(), "its adapter of experts does nothing"),
        ("get_delta_weight", lambda self, _: self.get_param().detach() * 0, "merged it gives other outputs"),
        ("forward", lambda self, x: x, "takes 2 positional arguments but 4 were given"),
    ],
)
def test_a_peft_that_trains_experts_wrongly_is_refused(
    monkeypatch: pytest.MonkeyPatch, method: str, broken: Any, said: str
) -> None:
    model = make_model("mixtral")
    config = on_experts(target=["q_proj"], rank=5 + len(method))  # none that was tried before
    monkeypatch.setattr(ParamWrapper, method, broken)
    start = (
        r"^adapter\.target_parameters=experts\.gate_up_proj,experts\.down_proj: peft does not train them rightly on m"
    )
    with pytest.raises(ValueError, match=rf"{start}.*{said}") as caught:
        require_loading(model, config)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    require_loading(model, config)


def test_an_adapter_of_experts_that_peft_loses_is_refused_by_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing:
        @staticmethod
        def from_pretrained(model: Any, folder: str) -> PeftModel:
            loaded = PeftModel.from_pretrained(model, folder)
            for name, parameter in loaded.named_parameters():
                if "experts.base_layer.lora_B" in name:
                    parameter.data.zero_()
            return loaded

    monkeypatch.setattr(adapter_trial, "PeftModel", Losing)
    said = r"^adapter\.target_parameters: peft loses an adapter of experts on mixtral when it loads it, so nobody"
    with pytest.raises(ValueError, match=said):
        require_loading(make_model("mixtral"), on_experts(target=["q_proj"], rank=29))


def test_a_plain_peft_can_disable_it() -> None:
    model = make_model("qwen3_moe")
    base = copy.deepcopy(model)
    adapted = add_adapter(model, on_experts(target=["q_proj"]), (), 0)
    move(model)
    text = documents()[3][None]
    assert isinstance(adapted, PeftModel) and (adapted(text).logits - base(text).logits).abs().max() > 1e-2
    with adapted.disable_adapter():
        assert torch.equal(adapted(text).logits, base(text).logits)


def test_a_critic_without_an_adapter_starts_as_a_reward_model_that_has_one_on_experts() -> None:
    reward = make_model("qwen3_moe")
    trunk = copy.deepcopy(reward.base_model)
    add_adapter(reward, on_experts(target=["q_proj"]), (), 0)
    move(reward)
    reward.add_module(SCORE, nn.Linear(32, 1, bias=False))
    start_as_reward(ValueHead(32), trunk, reward, 1.0, "here")
    text = documents()[3][None]
    expected, found = (part(input_ids=text).last_hidden_state for part in (reward.base_model, trunk))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_goes_on_with_its_own_names_and_layers_however_they_are_written(tmp_path: Path) -> None:
    model = make_model("mixtral")
    adapted = add_adapter(model, on_experts(target=["v_proj", "q_proj"]), (), 0)
    move(model)
    adapted.save_pretrained(str(tmp_path / "experts"), save_embedding_layers=False)
    other = on_experts(target=["v_proj", "q_proj"], target_parameters=BOTH)
    plan = continued(AdapterPlan(other, (), 0), tmp_path / "experts")
    again = make_model("mixtral")
    plan.put_into(again)
    text = documents()[3][None]
    assert torch.equal(again(text).logits, model(text).logits)

    in_layers = on_experts(target=["v_proj"], target_parameters=[], layers="0-1")
    add_adapter(make_model("mixtral"), in_layers, (), 0).save_pretrained(str(tmp_path / "layers"))
    assert continued(AdapterPlan(in_layers, (), 0), tmp_path / "layers").config.chosen_layers() == [0, 1]


@pytest.mark.parametrize("fails", ["small_copy", "_adapted", "_computed", "_fault"])
def test_running_out_of_memory_is_no_fault_of_the_adapter(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def run_out(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(adapter_trial, fails, run_out)
    monkeypatch.setattr(adapter_trial, "_RIGHT", set())
    with pytest.raises(torch.OutOfMemoryError):
        require_loading(make_model("qwen3_moe"), on_experts())
