"""NEFTune's noise: how loud, where, and when."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_run import MODEL, write_tokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer, Gemma3nForCausalLM, Gemma3nTextConfig

from llmtrain.batch import PackedTokens
from llmtrain.config.sections import ModelConfig
from llmtrain.models.attention import ATTENTION
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


def test_what_a_model_looks_up_beside_its_embedding_stays(tmp_path: Path) -> None:
    config = Gemma3nTextConfig(
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0, 0.0],
    )
    torch.manual_seed(0)
    model = Gemma3nForCausalLM._from_config(config, attn_implementation=ATTENTION)
    nn.init.normal_(model.model.embed_tokens_per_layer.weight)  # which are zero at first
    module = CausalLMLoss(model, "segments", form=None).train()
    ids = torch.arange(2, 34)
    pack = PackedTokens(ids, ids.roll(-1), torch.arange(32), (32,), 32, (0,))
    without = module(pack).objective
    module.neftune_alpha = 1e-6
    torch.testing.assert_close(module(pack).objective, without, rtol=1e-5, atol=1e-5)
