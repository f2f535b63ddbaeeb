"""Packed losses and gradients against `transformers`' own, one document at a time."""

from __future__ import annotations

import pytest
import torch
from one_by_one import SMALL, documents, gradients, packed, stock_loss
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmtrain.models.attention import ATTENTION
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.system.device import AttentionKernel

ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": 4},
    "phi3": {},
    "olmo2": {},
    "smollm3": {},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.2},
    "cohere": {},
    "gpt2": {},
    "gpt_neox": {},
}


def make_model(architecture: str) -> PreTrainedModel:
    blank = AutoConfig.for_model(architecture)
    known = {*blank.to_dict(), *blank.attribute_map}
    fields = {name: value for name, value in SMALL.items() if name in known} | ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **fields), attn_implementation=ATTENTION
    )
    with torch.no_grad():
        for parameter in model.parameters():  # weights large enough for a leak to show
            parameter.mul_(2.0) if parameter.ndim > 1 else None
    return model.eval()


def stock_errors(model: PreTrainedModel, text: torch.Tensor) -> int:
    """The tokens of one document that `transformers`' own forward would not have chosen."""
    with torch.no_grad():
        chosen = model(input_ids=text[None]).logits[0, :-1].argmax(-1)
    return int((chosen != text[1:]).sum())


@pytest.mark.parametrize("kernel", ["segments", "mask"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_packed_loss_and_gradients_equal_one_by_one(architecture: str, kernel: AttentionKernel) -> None:
    model, texts = make_model(architecture), documents()
    module = wrap_causal_lm(model, kernel, 64, torch.device("cpu"))
    model.eval()
    result = module(packed(texts))
    loss = result.objective
    loss.backward()
    ours = gradients(model)

    model.zero_grad()
    model.set_attn_implementation("eager")
    reference = sum((stock_loss(model, text) for text in texts), torch.zeros(()))
    reference.backward()
    theirs = gradients(model)
    torch.testing.assert_close(loss.detach(), reference.detach(), rtol=1e-5, atol=1e-4)
    assert result.errors == sum(stock_errors(model, text) for text in texts) != 0
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert (ours[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-6, name


def test_losses_of_documents_do_not_depend_on_their_pack() -> None:
    model, texts = make_model("llama"), documents()
    module = CausalLMLoss(model, "segments")
    together = module(packed(texts)).cross_entropy
    apart = sum(module(packed([text])).cross_entropy for text in texts if len(text) > 1)
    torch.testing.assert_close(together, apart)


def test_recomputed_activations_give_the_same_gradients() -> None:
    model, texts = make_model("llama"), documents()
    module = CausalLMLoss(model, "segments")
    model.train()
    module(packed(texts)).objective.backward()
    stored = gradients(model)
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": False})
    module(packed(texts)).objective.backward()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, stored[name], rtol=1e-5, atol=1e-6)
