"""Responses are those of the model and its noise, whatever batch they are made in, and leave the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_generation import (
    PROMPTS,
    SHAPES,
    STOP,
    input_shapes,
    prompts_of,
    respond,
    stock_greedy,
    teacher_forced,
    tiny,
    with_adapter,
)
from torch import Tensor, nn

from llmtrain.batch import PackedTokens
from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.attention import ATTENTION
from llmtrain.models.paths import choose
from llmtrain.models.stop_texts import StopTexts
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.rollout.engine import Sampling
from llmtrain.rollout.local import forward
from llmtrain.rollout.local import generate as engine
from llmtrain.rollout.local.cpu_decoder import Decoder
from llmtrain.rollout.local.generate import generate
from llmtrain.rollout.local.sampling import keep_likely
from llmtrain.rollout.local.ways import way_of


@pytest.fixture(autouse=True)
def short_responses_are_packed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PACKED_MIN_TOKENS", 16)


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_responses_equal_transformers(name: str) -> None:
    model = tiny(name)
    responses = respond(model, temperature=0)
    assert [response.response_ids for response in responses] == [stock_greedy(model, prompt, 20) for prompt in PROMPTS]


def test_a_window_that_left_whole_blocks_of_columns_behind_equals_transformers() -> None:
    model = tiny("mistral", sliding_window=40)
    prompts = prompts_of([700, 30])
    responses = respond(model, prompts, temperature=0)
    assert [response.response_ids for response in responses] == [stock_greedy(model, prompt, 20) for prompt in prompts]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("max_rows", [1, 3, 64])
def test_samples_are_bit_equal_in_any_batch_and_order(name: str, max_rows: int) -> None:
    model = tiny(name)
    settings = {"temperature": 2.0, "stop_ids": STOP}
    together = respond(model, **settings)
    assert len({response.stopped for response in together}) == 2
    order = torch.randperm(len(PROMPTS), generator=torch.Generator().manual_seed(max_rows)).tolist()
    reordered = respond(model, [PROMPTS[i] for i in order], order, max_rows, **settings)
    assert reordered == [together[i] for i in order]


def test_samples_are_bit_equal_alone() -> None:
    model = tiny()
    together = respond(model, stop_ids=STOP)
    for number, prompt in enumerate(PROMPTS):
        assert respond(model, [prompt], [number], stop_ids=STOP) == together[number : number + 1]


@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_equal_a_teacher_forced_forward(name: str) -> None:
    model = tiny(name)
    for prompt, response in zip(PROMPTS, respond(model, temperature=0.7, top_p=0.9), strict=True):
        weights = (teacher_forced(model, prompt, response) / 0.7).softmax(-1)
        kept = keep_likely(weights, 0.9, None)
        expected = (kept / kept.sum(-1, keepdim=True)).gather(-1, torch.tensor(response.response_ids)[:, None]).log()
        torch.testing.assert_close(torch.tensor(response.logprobs), expected[:, 0], rtol=0, atol=1e-4)


def test_a_stop_token_ends_its_response_and_belongs_to_it() -> None:
    free = respond(tiny())
    stopped = respond(tiny(), stop_ids=STOP)
    assert any(response.stopped for response in stopped)
    for whole, response in zip(free, stopped, strict=True):
        ends = [place for place, token in enumerate(whole.response_ids) if token in STOP]
        length = ends[0] + 1 if ends else 20
        assert response.response_ids == whole.response_ids[:length] and response.stopped == bool(ends)


def test_a_stop_text_ends_a_response_as_stopped_with_the_token_that_completes_it() -> None:
    free = respond(tiny())
    texts = StopTexts((spelt(free[0].response_ids)[4:9],), spelt)
    stopped = respond(tiny(), stop_texts=texts)
    for whole, response in zip(free, stopped, strict=True):
        end = spelt(whole.response_ids).find(texts.texts[0])
        length = end + 5 if end >= 0 else 20
        assert response.response_ids == whole.response_ids[:length] and response.logprobs == whole.logprobs[:length]
        assert (response.stopped, response.stop_text) == ((True, texts.texts[0]) if end >= 0 else (False, None))
    assert stopped[0].stopped


def spelt(ids: Sequence[int]) -> str:
    return "".join(chr(0x4E00 + id_) for id_ in ids)


def test_without_a_stop_token_the_budget_ends_every_response() -> None:
    responses = respond(tiny())
    assert [(len(response.response_ids), response.stopped) for response in responses] == [(20, False)] * len(PROMPTS)


def test_another_sample_rollout_or_seed_answers_otherwise() -> None:
    model = tiny()
    first = respond(model, PROMPTS[:1], [0])
    others = [
        respond(model, PROMPTS[:1], [1]),
        respond(model, PROMPTS[:1], [0], rollout=1),
        respond(model, PROMPTS[:1], [0], seed=1),
    ]
    assert all(other[0].response_ids != first[0].response_ids for other in others)


def test_a_prompt_that_samples_share_is_prefilled_once() -> None:
    model = tiny()
    shapes = input_shapes(model)
    prompts = [PROMPTS[1]] * 6 + [PROMPTS[7]] * 6
    shared = respond(model, prompts)
    assert shapes[0] == (1, len(PROMPTS[1]) + len(PROMPTS[7]))
    assert shared[3:4] == respond(model, prompts[3:4], [3])


def test_long_prompts_are_prefilled_in_several_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    expected = respond(model)
    monkeypatch.setattr(engine, "PREFILL_TOKENS", 21)
    shapes = input_shapes(model)
    assert respond(model) == expected
    assert [shape[1] for shape in shapes if shape[0] == 1] == [21, 21, 20]


def test_rows_that_ended_leave_the_batch() -> None:
    model = tiny()
    shapes = input_shapes(model)
    responses = respond(model, PROMPTS * 8, max_new_tokens=40, stop_ids=tuple(range(12)))
    assert next(shape for shape in shapes if shape[1] == 1) == (64, 1)
    left = sum(len(response.response_ids) > 1 + engine.STEPS_PER_CHUNK for response in responses)
    assert 16 < left < 32
    width = -(-left // engine.ROWS_MULTIPLE) * engine.ROWS_MULTIPLE
    assert (width, 1) in shapes


def test_generation_ends_with_its_last_response() -> None:
    model = tiny()
    shapes = input_shapes(model)
    responses = respond(model, PROMPTS[:2], max_new_tokens=200, stop_ids=tuple(range(48)))
    assert len(shapes) == max(len(response.response_ids) for response in responses)


def test_rows_wait_until_there_is_room() -> None:
    model = tiny()
    shapes = input_shapes(model)
    respond(model, PROMPTS * 5, max_rows=16, stop_ids=STOP)
    assert max(shape[0] for shape in shapes) == 16


@pytest.mark.parametrize("answers", [[True], [False, True]])
def test_generation_stops_within_a_chunk_of_tokens(answers: list[bool]) -> None:
    model = tiny()
    shapes = input_shapes(model)
    asked = iter(answers)
    assert generate(model, PROMPTS, range(8), Sampling(20), lambda: next(asked)) is None
    assert len(shapes) <= 1 + engine.STEPS_PER_CHUNK


def test_no_prompt_has_no_response() -> None:
    assert respond(tiny(), []) == []


@pytest.mark.parametrize("fails_at", [None, "before it opens", "between steps", "within a step"])
def test_the_model_is_left_as_it_was(fails_at: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> bool:
        raise RuntimeError

    model = tiny(attention_dropout=0.1)
    layer = model.get_submodule("model.layers.0")
    layer.eval()
    before = [module.training for module in model.modules()]
    head = nn.Sequential(nn.Linear(32, 1), nn.Flatten(0))
    random_state = torch.get_rng_state()
    asked = iter([False, True])
    should_stop: Callable[[], bool] = {None: lambda: False, "between steps": lambda: next(asked) and fails()}.get(
        fails_at, lambda: False
    )
    if fails_at == "before it opens":
        monkeypatch.setattr(forward, "can_decode", fails)
    if fails_at == "within a step":
        monkeypatch.setattr(Decoder, "logits", fails)
    with pytest.raises(RuntimeError) if fails_at else nullcontext():
        generate(model, PROMPTS, range(8), Sampling(20), should_stop, value_head=head)
    assert [module.training for module in model.modules()] == before
    assert model.config._attn_implementation == ATTENTION
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_dropout_is_off() -> None:
    dropping = tiny("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    assert respond(dropping) == respond(tiny("gpt2", attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0))


def test_activation_checkpointing_does_not_take_the_cache_away() -> None:
    model = tiny()
    expected = respond(model)
    model.activation_checkpointing_enable()
    assert respond(model) == expected


def test_a_compiled_model_generates_without_being_compiled_anew() -> None:
    compiled_graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        compiled_graphs.append(graph)
        return graph.forward

    model = tiny()
    expected = respond(model)
    model.base_model.compile(backend=backend)
    assert respond(model) == expected
    assert not compiled_graphs


@pytest.mark.parametrize(("name", "fused"), [("llama", False), ("llama", True), ("qwen2", True), ("qwen3", True)])
def test_an_adapter_speaks_as_it_would_merged_into_its_base(name: str, fused: bool) -> None:
    model = tiny(name)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    base = respond(model, temperature=0)
    adapted = with_adapter(model, fused)
    responses = respond(model, temperature=0)
    with adapted.disable_adapter():
        assert respond(model, temperature=0) == base
    merged: Any = copy.deepcopy(adapted).merge_and_unload()
    for prompt, response, of_base in zip(PROMPTS, responses, base, strict=True):
        assert response.response_ids == stock_greedy(merged, prompt, 20) != of_base.response_ids


def test_packed_layers_follow_the_weights_from_rollout_to_rollout() -> None:
    model = tiny()
    before = respond(model)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    assert respond(model) != before
    for prompt, response in zip(PROMPTS, respond(model, temperature=0), strict=True):
        assert response.response_ids == stock_greedy(model, prompt, 20)


def test_merged_layers_follow_their_adapter_from_rollout_to_rollout() -> None:
    model = tiny()
    adapted = with_adapter(model, fused=True)
    before = respond(model, temperature=0)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    merged: Any = copy.deepcopy(adapted).merge_and_unload()
    after = respond(model, temperature=0)
    assert after != before
    for prompt, response in zip(PROMPTS, after, strict=True):
        assert response.response_ids == stock_greedy(merged, prompt, 20)


def test_dora_is_packed_around_and_not_merged() -> None:
    model = tiny()
    add_adapter(model, AdapterConfig(kind="dora", rank=4, alpha=12), (), 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    for prompt, response in zip(PROMPTS, respond(model, temperature=0), strict=True):
        assert response.response_ids == stock_greedy(model, prompt, 20)


def test_a_model_inside_its_training_module_generates_and_trains_on() -> None:
    model = tiny()
    expected = respond(model)
    trained = CausalLMLoss(model, "segments")
    batch = PackedTokens(
        input_ids=torch.arange(8),
        labels=torch.arange(1, 9),
        position_ids=torch.tensor([0, 1, 2, 3, 4, 0, 1, 2]),
        segment_lengths=(5, 3),
        num_trained=8,
        sample_ids=(0,),
    )
    before = trained(batch).objective
    assert respond(model) == expected
    after = trained(batch).objective
    after.backward()
    assert torch.equal(before, after)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_runs_under_autocast() -> None:
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        responses = respond(model)
    assert [len(response.response_ids) for response in responses] == [20] * len(PROMPTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_decodes_in_packs_in_any_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_KNOWN", {})
    with torch.autocast("cpu", dtype):
        assert way_of(tiny()) == "packs"


def test_logits_that_are_not_finite_name_the_sample() -> None:
    model = tiny()
    model.get_input_embeddings().weight.data[PROMPTS[3][0]] = float("nan")
    with pytest.raises(ValueError, match=r"^sample 3: the model's logits are not finite after token 12: "):
        respond(model)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^sample 1: its prompt has no tokens"):
        respond(tiny(), [[1], []])


def test_a_response_past_the_models_positions_is_refused() -> None:
    message = r"^sample 1: a prompt of 45 tokens and rollout\.max_new_tokens=20 exceed the model's 64 positions"
    with pytest.raises(ValueError, match=message):
        respond(tiny("gpt2"), prompts_of([44, 45]))
