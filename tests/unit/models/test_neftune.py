"""NEFTune's noise: how loud, where, and when."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_run import MODEL, write_tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from llmtrain.batch import PackedTokens
from llmtrain.config.sections import ModelConfig
from llmtrain.models.load import load_model
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.models.wrappers.neftune import add_noise

LENGTHS = (3, 20, 9)


@pytest.fixture
def module(tmp_path: Path) -> CausalLMLoss:
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path))
    model = load_model(ModelConfig(config=MODEL), tokenizer, max_seq_len=32, seed=0)
    return wrap_causal_lm(model, "segments", 32, torch.device("cpu"))


def batch() -> PackedTokens:
    total = sum(LENGTHS)
    ids = torch.randint(256, (total,), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return PackedTokens(ids, ids.roll(-1), positions, LENGTHS, total, (0,))


def loss(module: CausalLMLoss, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return module(batch()).objective


def test_noise_is_uniform_and_as_loud_as_the_length_of_each_document_says() -> None:
    torch.manual_seed(0)
    alpha, width = 5.0, 4096
    noise = add_noise(torch.zeros(1, sum(LENGTHS), width), LENGTHS, alpha)[0]
    for part, length in zip(noise.split(LENGTHS), LENGTHS, strict=True):
        bound = alpha / math.sqrt(length * width)
        assert part.abs().max() <= bound and part.abs().max() > 0.99 * bound
        assert abs(part.mean()) < 0.03 * bound
        assert part.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # of a uniform distribution
        assert part.abs().mean(dim=1).min() > 0.45 * bound  # every token has its share


def test_noise_keeps_the_embeddings_dtype() -> None:
    assert add_noise(torch.zeros(1, 4, 8, dtype=torch.bfloat16), (4,), 5.0).dtype == torch.bfloat16


def test_it_is_off_unless_asked_for(module: CausalLMLoss) -> None:
    module.train()
    assert torch.equal(loss(module, 0), loss(module, 1))


def test_it_is_off_in_evaluation(module: CausalLMLoss) -> None:
    module.eval()
    plain = loss(module)
    module.neftune_alpha = 5.0
    assert torch.equal(loss(module), plain)


def test_it_is_drawn_from_torchs_generator(module: CausalLMLoss) -> None:
    module.train()
    plain = loss(module)
    module.neftune_alpha = 5.0
    assert torch.equal(loss(module, 0), loss(module, 0))
    assert len({float(loss(module, 0).detach()), float(loss(module, 1).detach()), float(plain.detach())}) == 3


def test_gradients_are_the_same_with_recomputed_activations(module: CausalLMLoss) -> None:
    module.train()
    module.neftune_alpha = 5.0
    loss(module).backward()
    expected = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    module.model.activation_checkpointing_enable({"use_reentrant": False})
    loss(module).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
