"""A Llama in memory that is small enough to be read by eye."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def tiny_llama(**shape: Any) -> LlamaForCausalLM:
    """A model with random weights, the same for the same shape."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | shape))
