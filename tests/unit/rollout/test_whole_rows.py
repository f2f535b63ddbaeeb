"""Responses of models that the packed way does not fit: those of `transformers`, drawn with our noise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_generation import COMMON, SMALL, prompts_of, respond, teacher_forced
from tiny_paths import DELTA, EXPERTS, WINDOWS, longrope
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmtrain.models.attention import ATTENTION
from llmtrain.models.paths.path import can_switch
from llmtrain.models.paths.small import small_copy
from llmtrain.rollout.engine import Sampling
from llmtrain.rollout.local import ways
from llmtrain.rollout.local.generate import generate
from llmtrain.rollout.local.ways import way_of

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("lfm2", SMALL | {"layer_types": ["conv", "full_attention"]}),
    "qwen3_5_text": ("qwen3_5_text", SMALL | DELTA),
    "mamba": ("mamba", {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}),
    "longrope": ("phi3", SMALL | {"rope_parameters": longrope(40), "original_max_position_embeddings": 40}),
    "windows by the mask only": (
        "qwen2_moe",
        SMALL | EXPERTS | WINDOWS,
    ),
    "an attention of its own": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}),
    "a cache that mixes rows": ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2}),
}
OF_THEIR_OWN = ("an attention of its own", "a cache that mixes rows")
PROMPTS = prompts_of((3, 9, 5, 12, 5, 1, 18))


def other(name: str) -> PreTrainedModel:
    architecture, fields = OTHERS[name]
    torch.manual_seed(0)
    attention = "eager" if name in OF_THEIR_OWN else ATTENTION
    shape = AutoConfig.for_model(architecture, **COMMON | fields)
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=attention)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "A_log" not in parameter_name:
            nn.init.normal_(parameter, std=0.3)
    return model.train()


@pytest.mark.parametrize("name", list(OTHERS))
def test_logprobs_are_those_of_the_whole_text(name: str) -> None:
    """Of text up to 38 tokens, one document at a time, from a model that stays in training mode."""
    model = other(name)
    assert way_of(model) == ("whole" if name == "a cache that mixes rows" else "cached")
    responses = respond(model, PROMPTS, temperature=0.7, seed=3)
    assert model.training and model.config._attn_implementation == (ATTENTION if can_switch(model) else "eager")
    assert len({len(response.response_ids) for response in responses}) == 1
    for prompt, response in zip(PROMPTS, responses, strict=True):
        logits = _teacher_forced(model, prompt, response)
        logprobs = (logits / 0.7).log_softmax(-1)
        chosen = logprobs.gather(-1, torch.tensor(response.response_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(response.logprobs), chosen, rtol=0, atol=2e-4)


def _teacher_forced(model: PreTrainedModel, prompt: list[int], response: Any) -> torch.Tensor:
    if can_switch(model):
        return teacher_forced(model, prompt, response)
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *response.response_ids]])).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("name", ["lfm2", "longrope"])
def test_samples_are_equal_in_any_batch_and_order(name: str) -> None:
    model = other(name)
    together = respond(model, PROMPTS, seed=3)
    numbers = [4, 1, 6]
    apart = respond(model, [PROMPTS[n] for n in numbers], numbers, max_rows=1, seed=3)
    assert [response.response_ids for response in apart] == [together[n].response_ids for n in numbers]


def test_stop_tokens_end_a_row_and_not_its_neighbours() -> None:
    model = other("lfm2")
    prompts = [PROMPTS[2], PROMPTS[4], PROMPTS[2]]
    whole = respond(model, prompts, seed=5)
    stop = whole[0].response_ids[4]
    stopped = respond(model, prompts, seed=5, stop_ids=(stop,))
    for before, after in zip(whole, stopped, strict=True):
        end = before.response_ids.index(stop) + 1 if stop in before.response_ids else 20
        assert after.response_ids == before.response_ids[:end]
        assert after.stopped == (stop in before.response_ids)


def test_values_are_of_the_state_before_each_token() -> None:
    model = other("lfm2")
    head = nn.Sequential(nn.Linear(32, 1), nn.Flatten(0))
    sampling = Sampling(max_new_tokens=6)
    (response,) = generate(model, [PROMPTS[1]], [0], sampling, lambda: False, value_head=head)  # type: ignore[misc]
    model.eval().set_attn_implementation("eager")
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([[*PROMPTS[1], *response.response_ids]])).last_hidden_state[0]
        expected = head(hidden[len(PROMPTS[1]) - 1 : -1])
    torch.testing.assert_close(torch.tensor(response.values), expected, rtol=1e-4, atol=1e-5)


def test_it_stops_when_asked() -> None:
    def after(calls: int) -> Callable[[], bool]:
        count = iter(range(calls))
        return lambda: next(count, None) is None

    model = other("lfm2")
    for calls in (0, 3):
        assert generate(model, PROMPTS, range(len(PROMPTS)), Sampling(20), after(calls)) is None


def test_a_cache_that_is_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that forgets, with a cache, what came before; computed whole it is right."""

    def forgets(model: PreTrainedModel, max_seq_len: int, attention: str) -> PreTrainedModel:
        small = small_copy(model, max_seq_len, attention)
        plain = small.forward

        @functools.wraps(plain)
        def forward(*args: Any, past_key_values: Any = None, **inputs: Any) -> Any:
            return plain(*args, **inputs)

        small.forward = forward
        return small

    monkeypatch.setattr(ways, "_KNOWN", {})
    assert way_of(other("mamba")) == "cached"
    monkeypatch.setattr(ways, "small_copy", forgets)
    assert way_of(other("longrope")) == "whole"


def test_a_model_that_generates_otherwise_than_it_computes_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("doge", keep_window_size=4, **COMMON | SMALL))
    with pytest.raises(ValueError, match=r"^doge: generation is not what the model computes of the whole text \(out"):
        generate(model, PROMPTS, range(len(PROMPTS)), Sampling(4), lambda: False)


def test_a_model_of_few_positions_is_tried_within_them() -> None:
    shape = AutoConfig.for_model("gpt2", **COMMON | {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 12})
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=ATTENTION)
    assert way_of(model) == "packs"
