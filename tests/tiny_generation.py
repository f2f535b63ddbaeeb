"""Tiny models that generate, and what `transformers` says of the same prompts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.attention import ATTENTION
from llmtrain.models.cpu.lora import fuse_adapters
from llmtrain.rollout.engine import Generated, Sampling
from llmtrain.rollout.local.generate import generate

VOCAB = 97
COMMON: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}
SHAPES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON, **SMALL),
    "qwen2": Qwen2Config(**COMMON, **SMALL),  # biases of queries, keys and values
    "qwen3": Qwen3Config(**COMMON, **SMALL),  # norms of queries and keys
    "gpt2": GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=64),  # learned positions
    "mistral": MistralConfig(**COMMON, **SMALL, sliding_window=6),
    "gemma2": Gemma2Config(**COMMON, **SMALL, sliding_window=6, query_pre_attn_scalar=8),  # softcaps, windows by turns
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 512}
LENGTHS = (3, 9, 5, 12, 5, 1, 7, 20)
STOP = tuple(range(5, 11))


def tiny(name: str = "llama", **changes: Any) -> PreTrainedModel:
    """A model whose likeliest tokens are clear of each other, in training mode, with attention within documents."""
    torch.manual_seed(0)
    shape = copy.deepcopy(SHAPES[name])
    shape.update(changes)
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=ATTENTION)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.train()


def with_adapter(model: PreTrainedModel, fused: bool) -> PeftModel:
    """The model with a LoRA adapter in every linear layer whose second matrix is not zero, as peft wraps it."""
    adapted = add_adapter(model, AdapterConfig(kind="lora", rank=4, alpha=12), (), 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    if fused:
        assert fuse_adapters(model) == 14
    return adapted


def prompts_of(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = prompts_of(LENGTHS)


def respond(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    sample_ids: Sequence[int] | None = None,
    max_rows: int = 64,
    **settings: Any,
) -> list[Generated]:
    """Responses of at most 20 tokens, one a sample."""
    sampling = Sampling(**{"max_new_tokens": 20} | settings)
    numbers = range(len(prompts)) if sample_ids is None else sample_ids
    responses = generate(model, prompts, numbers, sampling, lambda: False, max_rows=max_rows)
    assert responses is not None
    return responses


def stock_greedy(model: PreTrainedModel, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
    """What transformers' own greedy search answers to one prompt."""
    reference = copy.deepcopy(model).eval()
    reference.set_attn_implementation("eager")
    stock: Any = reference.generate
    output = stock(torch.tensor([prompt]), max_new_tokens=max_new_tokens, do_sample=False)
    return output[0, len(prompt) :].tolist()


def teacher_forced(model: PreTrainedModel, prompt: Sequence[int], response: Generated) -> Tensor:
    """Logits, (tokens, vocab), that transformers' own attention gives before each token of a response."""
    reference = copy.deepcopy(model).eval()
    reference.set_attn_implementation("eager")
    with torch.no_grad():
        logits = reference(torch.tensor([[*prompt, *response.response_ids]])).logits[0]
    return logits[len(prompt) - 1 : -1]


def input_shapes(model: PreTrainedModel) -> list[torch.Size]:
    """A list that fills up with the shapes of what a model is given."""
    shapes: list[torch.Size] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    return shapes
