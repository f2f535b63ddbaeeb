"""The short ways through a model give what its own forward does, and are taken where they are known to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from tiny_generation import (
    COMMON,
    PROMPTS,
    SHAPES,
    SMALL,
    STOP,
    YARN,
    respond,
    stock_greedy,
    teacher_forced,
    tiny,
    with_adapter,
)
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from llmtrain.models.heads.head import put_head
from llmtrain.rollout.engine import Sampling
from llmtrain.rollout.local import forward
from llmtrain.rollout.local.cpu_decoder import can_decode
from llmtrain.rollout.local.cpu_linear import StepLinears, in_fp32_on_cpu
from llmtrain.rollout.local.generate import generate


@pytest.mark.parametrize("rows", [8, 16])
@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_layers_of_steps_compute_what_the_layers_do(fused: bool, packs: bool, rows: int) -> None:
    wide = {"hidden_size": 64, "head_dim": 64, "intermediate_size": 128, "vocab_size": 192}
    model = tiny(attention_bias=True, **wide)
    put_head(model)  # as a policy that is trained has it
    with_adapter(model, fused)
    inputs = {
        name: torch.randn(rows, 1, layer.in_features)
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, LoraLinear)) and ".lora_" not in name and ".base_layer" not in name
    }
    layers = {name: model.get_submodule(name) for name in inputs}
    assert len(layers) == 15
    with torch.no_grad():
        expected = {name: layer(inputs[name]) for name, layer in layers.items()}
        with StepLinears(model, rows, packs=packs).in_use():
            others = {layer for layer in layers.values() if "forward" not in vars(layer)}
            assert others == (set() if packs or rows == 8 else {model.get_output_embeddings()})
            found = {name: layer(inputs[name]) for name, layer in layers.items()}
    for name in layers:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
        assert torch.equal(layers[name](inputs[name]), expected[name])


@pytest.mark.parametrize("packs", [False, True])
def test_layers_of_steps_leave_other_numbers_of_rows_to_the_layers(packs: bool) -> None:
    model = tiny(vocab_size=128)
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    x = torch.randn(3, 32)
    expected = head(x)
    with StepLinears(model, 8, packs=packs).in_use():
        assert "forward" in vars(head) and torch.equal(head(x), expected)


def test_a_model_that_is_not_in_fp32_keeps_its_layers_and_its_forward() -> None:
    assert in_fp32_on_cpu(tiny()) and can_decode(tiny())
    half = tiny().to(torch.bfloat16)
    assert not in_fp32_on_cpu(half) and not can_decode(half)
    with torch.autocast("cpu", torch.bfloat16):
        assert not in_fp32_on_cpu(tiny()) and not can_decode(tiny())


DECODED: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON, **SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama with scaled positions": LlamaConfig(**COMMON, **SMALL, rope_parameters=YARN),
    "mistral": MistralConfig(**COMMON, **SMALL, sliding_window=None),
    "qwen2": SHAPES["qwen2"],
    "qwen3": SHAPES["qwen3"],
}
NOT_DECODED: dict[str, PreTrainedConfig] = {
    "another shape": SHAPES["gpt2"],
    "other norms": SHAPES["gemma2"],
    "a window": SHAPES["mistral"],
    "windows in some layers": Qwen2Config(
        **COMMON, **SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "another gate": LlamaConfig(**COMMON, **SMALL, hidden_act="gelu"),
}


@pytest.mark.parametrize("name", DECODED)
def test_the_short_way_gives_the_logits_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, name, DECODED[name])
    model = tiny(name)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    assert can_decode(model)
    short = respond(model)
    for prompt, response in zip(PROMPTS, short, strict=True):
        said = teacher_forced(model, prompt, response).log_softmax(-1)
        expected = said[torch.arange(len(response.response_ids)), response.response_ids]
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, rtol=0, atol=1e-4)
    monkeypatch.setattr(forward, "can_decode", lambda model: False)
    assert [one.response_ids for one in respond(model)] == [one.response_ids for one in short]


class ScaledLlama(LlamaForCausalLM):
    """Computes differently, with Llama's layers."""

    def forward(self, *arguments: Any, **inputs: Any) -> Any:
        outputs = super().forward(*arguments, **inputs)
        outputs.logits = outputs.logits / 4
        return outputs


def test_a_class_that_derives_from_a_known_one_is_not_taken_for_it() -> None:
    model = tiny()
    model.__class__ = ScaledLlama
    assert not can_decode(model)
    of_trunk = tiny()
    of_trunk.base_model.__class__ = type("ScaledTrunk", (LlamaModel,), {})
    assert not can_decode(of_trunk)


@pytest.mark.parametrize("name", NOT_DECODED)
def test_other_models_take_the_forward_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, name, NOT_DECODED[name])
    model = tiny(name)
    assert not can_decode(model)
    prompt = PROMPTS[3]
    assert respond(model, [prompt], [0], temperature=0)[0].response_ids == stock_greedy(model, prompt, 20)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_value_head_reads_what_the_output_head_does(name: str) -> None:
    model = tiny(name)
    head = nn.Sequential(nn.Linear(32, 1), nn.Flatten(0))
    prompts = [*PROMPTS, PROMPTS[1]]
    sampling = Sampling(20, stop_ids=STOP)
    responses = generate(model, prompts, range(9), sampling, lambda: False, value_head=head, max_rows=3)
    assert responses is not None
    for prompt, response in zip(prompts, responses, strict=True):
        reference = copy.deepcopy(model).eval()
        reference.set_attn_implementation("eager")
        with torch.no_grad():
            hidden = reference.base_model(torch.tensor([[*prompt, *response.response_ids[:-1]]])).last_hidden_state[0]
            expected = head(hidden[len(prompt) - 1 :])
        torch.testing.assert_close(torch.tensor(response.values), expected, rtol=0, atol=1e-4)
    assert all(not response.values for response in respond(model))
