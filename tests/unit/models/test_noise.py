"""What draws random numbers in training is named: dropout of any kind, NEFTune."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, OPTConfig, PreTrainedConfig

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.attention import ATTENTION
from llmtrain.models.noise import drawn_noise
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.causal_lm import CausalLMLoss

SMALL = {"vocab_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}
OPT = {"vocab_size": 16, "hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 8, "num_hidden_layers": 1}
OPT |= {"num_attention_heads": 2, "dropout": 0.0}
GPT2 = {"vocab_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16}


def wrapped(shape: PreTrainedConfig, adapter_dropout: float | None = None) -> CausalLMLoss:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=ATTENTION)
    if adapter_dropout is not None:
        config = AdapterConfig(kind="lora", rank=2, dropout=adapter_dropout)
        model = add_adapter(model, config, (), 0)
    return CausalLMLoss(model, "segments")


@pytest.mark.parametrize(
    ("module", "noise"),
    [
        (lambda: wrapped(LlamaConfig(**SMALL)), []),
        (lambda: wrapped(LlamaConfig(**SMALL, attention_dropout=0.1)), ["dropout"]),
        (lambda: wrapped(GPT2Config(**GPT2)), ["dropout"]),
        (lambda: wrapped(GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)), []),
        (lambda: wrapped(LlamaConfig(**SMALL), adapter_dropout=0.1), ["dropout"]),
        (lambda: wrapped(LlamaConfig(**SMALL), adapter_dropout=0.0), []),
        (
            lambda: wrapped(MixtralConfig(**SMALL, num_local_experts=2, router_jitter_noise=0.1)),
            ["router_jitter_noise"],
        ),
        (lambda: wrapped(OPTConfig(**OPT, layerdrop=0.1)), ["layerdrop"]),
        (lambda: ActorCritic(wrapped(LlamaConfig(**SMALL)), temperature=1.0, trains_entropy=False), []),
    ],
    ids=["llama", "attention", "gpt2", "gpt2 without", "adapter", "adapter without", "jitter", "layers", "policy"],
)
def test_dropout_is_named(module, noise) -> None:
    assert drawn_noise(module()) == noise


def test_neftune_is_named() -> None:
    module = wrapped(LlamaConfig(**SMALL))
    module.neftune_alpha = 5.0
    assert drawn_noise(module) == ["NEFTune"]
