"""The head takes the place of a model's projection: same parameters, same names, nothing drawn."""

from __future__ import annotations

import pytest
import torch
from tiny_run import MODEL
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llmtrain.models.adapters.token_rows import train_rows
from llmtrain.models.heads.head import Head, output_head, put_head
from llmtrain.models.heads.logprobs import LogprobOptions
from llmtrain.protocols import LossOptions


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_keeps_parameters_and_their_names(tied: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(**{**MODEL, "tie_word_embeddings": tied}, vocab_size=64)).eval()
    before, state = dict(model.named_parameters(remove_duplicate=False)), torch.get_rng_state()
    put_head(model)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(model.get_output_embeddings()) is Head and not output_head(model).training
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


def test_putting_a_head_twice_changes_nothing() -> None:
    model = LlamaForCausalLM(LlamaConfig(**MODEL, vocab_size=64))
    put_head(model)
    head = output_head(model)
    put_head(model)
    assert output_head(model) is head


def test_losses_and_logprobs_pass_the_hooks_of_the_module() -> None:
    head, calls = Head(8, 11), list[nn.Module]()
    head.register_forward_pre_hook(lambda module, _: calls.append(module))
    hidden, labels = torch.randn(5, 8), torch.randint(11, (5,))
    loss = head.loss(hidden, labels, LossOptions())
    logprobs = head.logprobs(hidden, labels, LogprobOptions())
    assert calls == [head, head]
    torch.testing.assert_close(loss.cross_entropy, -logprobs.logprobs.sum().detach())


def test_rows_of_new_tokens_take_their_place_in_the_model() -> None:
    model = LlamaForCausalLM(LlamaConfig(**MODEL, vocab_size=64)).requires_grad_(False).eval()
    expected, state = model(torch.arange(64)[None]).logits, torch.get_rng_state()
    train_rows(model, (60, 62))
    torch.testing.assert_close(model(torch.arange(64)[None]).logits, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert not output_head(model).has_logprobs
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["model.embed_tokens.rows"]  # the head is tied
