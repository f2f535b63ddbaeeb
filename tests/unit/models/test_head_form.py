"""Heads that scale or cap their logits run in chunks, with the model's own losses, logprobs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_llama import tiny_llama
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from llmtrain.models.adapters.token_rows import train_rows
from llmtrain.models.attention import ATTENTION
from llmtrain.models.heads import chunks as chunking
from llmtrain.models.heads.cross_entropy import logits_loss
from llmtrain.models.heads.form import PLAIN, HeadForm
from llmtrain.models.heads.head import Head, output_head
from llmtrain.models.heads.logprobs import LogprobOptions, logits_logprobs
from llmtrain.models.trunk import pack_inputs, run_model, run_trunk
from llmtrain.models.wrappers.actor_critic import ActorCritic, ValueHead
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.protocols import LossOptions
from llmtrain.rollout.local.forward import keeping_hidden
from tests.parity.test_transformers import SMALL, documents, packed

CPU = torch.device("cpu")
FORMS = {
    "plain": PLAIN,
    "scale": HeadForm(scale=0.3),
    "input scale": HeadForm(input_scale=0.4),
    "softcap": HeadForm(softcap=2.0),
    "all": HeadForm(1.7, 0.6, 1.5),
}
FAMILIES: dict[str, tuple[dict[str, Any], HeadForm]] = {
    "llama": ({}, PLAIN),
    "granite": ({"logits_scaling": 4.0}, HeadForm(scale=0.25)),
    "cohere2": ({"logit_scale": 0.125}, HeadForm(scale=0.125)),
    "minicpm3": (
        {"dim_model_base": 8, "kv_lora_rank": 8, "q_lora_rank": 8, "num_key_value_heads": 4},
        HeadForm(input_scale=0.25),
    ),
    "gemma2": ({"final_logit_softcapping": 4.0}, HeadForm(softcap=4.0)),
}


def small_chunks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chunking, "MIN_CHUNK_TOKENS", 32)
    patch.setattr(chunking, "CHUNK_ELEMENTS", 1)


def own_logits(head: nn.Linear, hidden: Tensor, form: HeadForm) -> Tensor:
    """As the formula says."""
    logits = form.scale * nn.functional.linear(form.input_scale * hidden, head.weight, head.bias)
    return logits if form.softcap is None else form.softcap * torch.tanh(logits / form.softcap)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", list(FORMS))
def test_losses_and_logprobs_of_a_form_are_those_of_its_logits(
    monkeypatch: pytest.MonkeyPatch, name: str, frozen: bool
) -> None:
    small_chunks(monkeypatch)
    torch.manual_seed(0)
    head, form = Head(12, 33).requires_grad_(not frozen), FORMS[name]
    head.form = form
    hidden = (3 * torch.randn(80, 12)).requires_grad_()
    labels, weights = torch.randint(33, (80,)), torch.rand(80)
    options, trained = LossOptions(0.1, 1e-2), [hidden, *([] if frozen else head.parameters())]
    logits = own_logits(head, hidden, form)
    torch.testing.assert_close(head.logits(hidden), logits)

    ours, own = head.loss(hidden, labels, options, weights), logits_loss(logits, labels, options, weights)
    torch.testing.assert_close(ours.objective, own.objective)
    torch.testing.assert_close(ours.token_losses, own.token_losses)
    assert ours.errors == own.errors
    pairs = [(ours.objective, own.objective)]
    temperate = LogprobOptions(0.7)
    found, expected = head.logprobs(hidden, labels, temperate), logits_logprobs(logits, labels, temperate)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        pairs.append(((one * weights).sum(), (other * weights).sum()))
    for pair in pairs:
        gradients = [torch.autograd.grad(each, trained, retain_graph=True) for each in pair]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def family(name: str, **changes: Any) -> PreTrainedModel:
    """A model of a family whose logits are large enough for a softcap to bend them."""
    blank = AutoConfig.for_model(name)
    known = {*blank.to_dict(), *blank.attribute_map}
    fields = {key: value for key, value in SMALL.items() if key in known} | FAMILIES[name][0] | changes
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **fields), attn_implementation=ATTENTION)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0) if parameter.ndim > 1 else None
    return model


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: each.grad for name, each in module.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_form_of_a_family_is_found_and_trains_as_its_own_logits_do(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small_chunks(monkeypatch)
    module = wrap_causal_lm(family(name), "segments", 64, CPU).eval()
    form, expected = module.form, FAMILIES[name][1]
    assert form is not None and not module.whole_logits
    assert (form.input_scale, form.scale) == pytest.approx((expected.input_scale, expected.scale), rel=1e-6)
    assert form.softcap == (None if expected.softcap is None else pytest.approx(expected.softcap, rel=1e-6))

    whole = CausalLMLoss(module.model, module.kernel, form=None, path=module.path).eval()
    batch, options = packed(documents()), LossOptions(0.1, 1e-3)
    ours, own = module(batch, options), whole(batch, options)
    torch.testing.assert_close(ours.objective, own.objective, rtol=1e-6, atol=1e-5)
    assert ours.errors == own.errors
    outputs = [ActorCritic(each, 0.9).eval()(batch) for each in (module, whole)]
    for one, other in zip(outputs[0][:2], outputs[1][:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)
    losses = (ours.objective, own.objective), tuple(each.logprobs.sum() + each.entropies.sum() for each in outputs)
    for pair in losses:
        found, wanted = (gradients(module, each) for each in pair)
        assert found.keys() == wanted.keys()
        for parameter, gradient in wanted.items():
            assert (found[parameter] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, parameter


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "granite", "minicpm3"])
def test_a_sampler_gives_values_only_where_both_heads_read_the_same(name: str) -> None:
    module = ActorCritic(wrap_causal_lm(family(name), "segments", 64, CPU), 1.0, head := ValueHead(32)).eval()
    nn.init.normal_(head.weight)
    inputs = pack_inputs(packed(documents()), "segments")
    with keeping_hidden(module.model, head) as values:
        run_model(module.model, inputs)
        sampled = values()
    assert sampled is not None
    is_same = torch.allclose(sampled, head(run_trunk(module.model.base_model, inputs)))
    assert is_same == (name != "minicpm3") == (module.trunk_head is head)


def test_a_softcap_is_found_where_it_does_not_bend_yet() -> None:
    model = family("gemma2", final_logit_softcapping=30.0)
    with torch.no_grad():
        output_weight(model).mul_(1e-4)
    form = wrap_causal_lm(model, "segments", 64, CPU).form
    assert form is not None and form.softcap == pytest.approx(30.0, rel=1e-6)


def output_weight(model: PreTrainedModel) -> Tensor:
    head = model.get_output_embeddings()
    assert head is not None
    return head.get_parameter("weight")


class Otherwise(LlamaForCausalLM):
    """A Llama that does something to its logits."""

    change: Callable[[nn.Module, Tensor], Tensor]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = type(self).change(self, outputs.logits)
        return outputs


CHANGES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a number per token": lambda _, logits: logits + torch.linspace(0, 1, logits.shape[-1]),
    "a bound without a curve": lambda _, logits: logits.clamp(-20, 20),
    "tokens left out": lambda _, logits: logits.index_fill(-1, torch.tensor([3]), -1e9),
    "a trained scale": lambda model, logits: logits * model.temperature,
    "half of the gradient": lambda _, logits: (logits + logits.detach()) / 2,
    "logits of others": lambda _, logits: logits - logits.mean(-1, keepdim=True),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_head_of_no_known_form_keeps_the_models_own_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Otherwise, "change", CHANGES[name], raising=False)
    config = tiny_llama(vocab_size=96, max_position_embeddings=64).config
    torch.manual_seed(0)
    model = Otherwise._from_config(config, attn_implementation=ATTENTION)
    assert wrap_causal_lm(model, "segments", 64, CPU).whole_logits


def test_rows_of_new_tokens_are_capped_too() -> None:
    model = family("gemma2").requires_grad_(False)
    train_rows(model, (90, 95))
    module = wrap_causal_lm(model, "segments", 64, CPU).eval()
    assert type(output_head(module.model)).__name__ == "HeadWithRows" and not module.whole_logits
    whole = CausalLMLoss(model, module.kernel, form=None, path=module.path).eval()
    batch = packed(documents())
    with torch.no_grad():
        for parameter in (each for name, each in model.named_parameters() if name.endswith("rows")):
            parameter.add_(torch.randn_like(parameter))
    ours, own = module(batch), whole(batch)
    torch.testing.assert_close(ours.objective, own.objective, rtol=1e-6, atol=1e-5)
    found, wanted = (gradients(module, each.objective) for each in (ours, own))
    assert wanted
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(each.numel() for each in tree_leaves(made) if isinstance(each, Tensor))])
        return made


@pytest.mark.parametrize("name", list(FAMILIES))
def test_no_tensor_holds_the_logits_of_all_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    module = wrap_causal_lm(family(name, vocab_size=2000), "segments", 64, CPU)
    batch = packed(documents() * 3)
    with Largest() as largest:
        module(batch).objective.backward()
    assert largest.numel < batch.num_trained * 2000
