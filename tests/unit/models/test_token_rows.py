"""Trained rows of an embedding and a head, against matrices with those rows written in."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, linear
from transformers import AutoModelForCausalLM, GemmaConfig, PhiConfig, PreTrainedConfig

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.adapters.token_rows import EmbeddingWithRows, HeadWithRows
from llmtrain.models.heads import chunks as chunking
from llmtrain.protocols import LossOptions

TOKENS, HIDDEN, VOCAB, ROW_IDS = 150, 12, 33, (5, 31)


def rows() -> tuple[nn.Parameter, Tensor]:
    return nn.Parameter(torch.randn(len(ROW_IDS), HIDDEN)), torch.tensor(ROW_IDS)


def written_in(module: nn.Module) -> Tensor:
    return module.weight.index_copy(0, module.row_ids, module.rows)


def test_the_embedding_looks_rows_up() -> None:
    torch.manual_seed(0)
    module = EmbeddingWithRows.of(nn.Embedding(VOCAB, HIDDEN).requires_grad_(False), *rows())
    ids = torch.tensor([[0, 5, 31, 5, 32]])
    weights = torch.randn(1, 5, HIDDEN)
    found, expected = module(ids), embedding(ids, written_in(module))
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad((out * weights).sum(), module.rows)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_rows_that_a_batch_lacks_have_a_gradient_of_zero() -> None:
    module = EmbeddingWithRows.of(nn.Embedding(VOCAB, HIDDEN).requires_grad_(False), *rows())
    module(torch.tensor([[1, 2, 3]])).sum().backward()
    assert module.rows.grad is not None and not module.rows.grad.any()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("options", [LossOptions(), LossOptions(0.1, 1e-2)], ids=["plain", "smoothing and z-loss"])
def test_the_head_takes_their_loss_in_chunks(
    monkeypatch: pytest.MonkeyPatch, options: LossOptions, has_bias: bool
) -> None:
    monkeypatch.setattr(chunking, "MIN_CHUNK_TOKENS", 64)  # three chunks, the last one short
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 1)
    torch.manual_seed(0)
    module = HeadWithRows.with_rows(nn.Linear(HIDDEN, VOCAB, bias=has_bias).requires_grad_(False), *rows())
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    labels = torch.randint(VOCAB, (TOKENS,))
    logits = linear(hidden, written_in(module), module.bias)
    torch.testing.assert_close(module(hidden), logits)
    expected = cross_entropy(logits, labels, label_smoothing=options.label_smoothing, reduction="sum")
    expected = expected + options.z_loss * (logits.logsumexp(-1) ** 2).sum()
    ours = module(hidden, labels, options).objective
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for parameter in (hidden, module.rows):
        gradients = [torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in (ours, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [GemmaConfig, PhiConfig])
def test_rows_of_a_scaled_embedding_and_of_a_head_with_a_bias_are_those_that_peft_loads(
    shape: type[PreTrainedConfig], tmp_path: Path
) -> None:
    config = shape(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    nn.init.normal_(model.lm_head.weight)
    stock = copy.deepcopy(model)
    stock.save_pretrained(tmp_path)
    add_adapter(model, AdapterConfig(kind="lora", rank=2), ROW_IDS, 0)
    for name, parameter in model.named_parameters():
        if name.endswith(".rows"):
            nn.init.normal_(parameter)
    ids = torch.tensor([[3, 5, 31, 7]])
    names = {"model.embed_tokens": model.get_input_embeddings()}
    if not config.tie_word_embeddings:  # else peft ties them by itself
        names["lm_head"] = model.get_output_embeddings()
    lora = LoraConfig(target_modules="all-linear", r=2, trainable_token_indices={name: list(ROW_IDS) for name in names})
    theirs = get_peft_model(stock, lora)
    for name, module in names.items():
        layer = theirs.get_submodule(f"base_model.model.{name}").token_adapter
        layer.trainable_tokens_delta["default"].data.copy_(module.rows)
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)
