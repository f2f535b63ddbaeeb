"""Parameters that not every document reaches are found, and get a gradient of zero where they have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tiny_paths import ChoosingLlama, SkippingLlama
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from llmtrain.models.trunk import run_model
from llmtrain.models.unreached import Unreached, find_unreached, join
from llmtrain.models.wrappers.prepare import reach_all
from llmtrain.protocols import Sharding
from tests.parity.test_transformers import SMALL

MAX_SEQ_LEN = 700


class Idle(nn.Module):
    """A feed-forward with a layer whose output goes nowhere, one that does not run, and one for long documents."""

    least = 100  # tokens of a long one

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.nowhere, self.never, self.long = inner, *(nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        self.nowhere(hidden).argmax(-1)
        found: Tensor = self.inner(hidden)
        return found + self.long(hidden) if hidden.shape[1] > self.least else found


class IdleLlama(LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers[1].mlp = Idle(self.model.layers[1].mlp, config.hidden_size)


def made(cls: type[LlamaForCausalLM]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return cls(LlamaConfig(**SMALL | {"max_position_embeddings": MAX_SEQ_LEN}))


def logits(model: LlamaForCausalLM) -> Callable[[Sequence[int]], Tensor]:
    """Of documents of some lengths, one after the other."""

    def compute(lengths: Sequence[int]) -> Tensor:
        return torch.cat([model(input_ids=torch.arange(length)[None] % 64).logits[0] for length in lengths])

    return compute


def found_in(model: LlamaForCausalLM) -> Unreached:
    return find_unreached(model, model.get_input_embeddings(), logits(model), MAX_SEQ_LEN)


def test_a_model_that_every_document_reaches_is_left_as_it_is() -> None:
    model = made(LlamaForCausalLM)
    assert found_in(model) == Unreached() and found_in(model).line == ""
    join([], model.get_input_embeddings())
    assert not [module for module in model.modules() if module._forward_pre_hooks or module._forward_hooks]


def test_what_no_document_reaches_is_not_what_only_a_long_one_does() -> None:
    found = found_in(made(IdleLlama))
    at = "model.layers.1.mlp"
    assert {each.name for each in found.by_any} == {
        f"{at}.{n}.{p}" for n in ("nowhere", "never") for p in ("weight", "bias")
    }
    assert {each.name for each in found.by_some} == {f"{at}.long.weight", f"{at}.long.bias"}
    assert {type(each.around) for each in (*found.by_any, *found.by_some)} == {Idle}


@pytest.mark.parametrize("least", [MAX_SEQ_LEN - 1, MAX_SEQ_LEN])
def test_what_only_the_longest_document_of_a_run_reaches_is_reached_by_some(
    least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Idle, "least", least)
    found = found_in(made(IdleLlama))
    by_long = {each.name for each in found.by_some}
    assert {name.split(".")[-2] for name in by_long} == ({"long"} if least < MAX_SEQ_LEN else set())


def test_a_look_keeps_no_activations() -> None:
    model = made(IdleLlama)
    last: list[Any] = []

    def compute(lengths: Sequence[int]) -> Tensor:
        found = logits(model)(lengths).exp()  # whose backward takes what it gave
        last.append(found.grad_fn)
        return found

    find_unreached(model, model.get_input_embeddings(), compute, MAX_SEQ_LEN)
    for node in last:
        with pytest.raises(AssertionError, match="no look"):
            _ = node._saved_result


def test_all_experts_of_a_list_count_though_some_are_chosen_in_each_look() -> None:
    found = found_in(made(ChoosingLlama))
    assert not found.by_any
    assert {each.name for each in found.by_some} == {
        f"model.layers.0.mlp.experts.{n}.{p}" for n in range(4) for p in ("weight", "bias")
    }
    assert {type(each.around).__name__ for each in found.by_some} == {"ChosenExperts"}


@pytest.mark.parametrize("cls", [IdleLlama, ChoosingLlama])
def test_joined_they_have_gradients_of_zero_and_all_else_is_as_before(cls: type[LlamaForCausalLM]) -> None:
    plain, model = made(cls), made(cls)
    found = found_in(model)
    join([*found.by_any, *found.by_some], model.get_input_embeddings())
    outputs = [logits(each)([3, 2]) for each in (plain, model)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for (name, alone), joined in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert joined.grad is not None, name
        assert torch.equal(joined.grad, torch.zeros_like(joined) if alone.grad is None else alone.grad), name
    assert any(parameter.grad is None for parameter in plain.parameters())


def dropping() -> OPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape = OPTConfig(**sizes, word_embed_proj_dim=32, max_position_embeddings=64, layerdrop=0.5, dropout=0.0)
    return OPTForCausalLM(shape)


def test_layers_that_training_drops_at_random_have_gradients_of_zero_when_they_are() -> None:
    model = dropping()
    found = reach_all(model, run_model, "equal", 16, sharding="none")
    assert {each.name.split(".")[2] for each in found.by_some} == {"layers"} and len(found.by_some) == 32
    assert {each.around for each in found.by_some} == {model.get_input_embeddings()}
    model.train()
    layers, some = model.model.decoder.layers, 0
    for _ in range(8):
        model.zero_grad()
        logits(model)([5]).square().sum().backward()
        grads = [layer.fc1.weight.grad for layer in layers]
        assert all(grad is not None for grad in grads)
        some += sum(not grad.any() for grad in grads)
    assert 0 < some < 16


@pytest.mark.parametrize(("sharding", "engine"), [("layers", "FSDP2"), ("modules", "ZeRO-3")])
def test_ranks_that_gather_weights_must_run_the_same_layers(sharding: Sharding, engine: str) -> None:
    for model in (dropping(), made(SkippingLlama)):
        with pytest.raises(ValueError, match=f"^{model.config.model_type}: not every document .* under {engine} every"):
            reach_all(model, run_model, "equal", 16, sharding=sharding)
    if sharding == "layers":  # experts are inside of a layer that always runs
        assert reach_all(made(ChoosingLlama), run_model, "equal", 16, sharding=sharding).by_some


def test_without_gradients_nothing_joins() -> None:
    model = made(IdleLlama)
    found = found_in(model)
    join(found.by_any, model.get_input_embeddings())
    with torch.no_grad():
        assert not logits(model)([3]).requires_grad


def test_a_run_that_would_train_nothing_is_refused() -> None:
    model = made(IdleLlama).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("nowhere" in name)
    with pytest.raises(ValueError, match=r"^adapter\.target: .*nowhere\.weight and all others get no gradient"):
        found_in(model)
    model.lm_head.weight.requires_grad_(True)
    assert len(found_in(model).by_any) == 2


class PassedBy(nn.Module):
    """A layer that training passes by, reading its weight instead, as Gemma 3n does."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.layer = inner, nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.inner(hidden)
        return found + (hidden @ self.layer.weight.detach().T if self.training else self.layer(hidden))


def test_what_only_evaluation_reaches_is_found_too_and_the_model_is_left_in_its_mode() -> None:
    for mode in (True, False):
        model = made(LlamaForCausalLM)
        model.model.layers[1].mlp = PassedBy(model.model.layers[1].mlp, model.config.hidden_size)
        found = reach_all(model.train(mode), run_model, "equal", 16, sharding="none")
        assert [each.name for each in found.by_any] == ["model.layers.1.mlp.layer.weight"] and model.training is mode
