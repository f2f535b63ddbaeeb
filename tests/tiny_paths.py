"""Fields of tiny configurations whose documents do not all run in plain packs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
WINDOWS: dict[str, Any] = {
    "layer_types": ["full_attention", "sliding_attention"],
    "sliding_window": 8,
    "use_sliding_window": True,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def longrope(positions: int, *, head_dim: int = 8) -> dict[str, Any]:
    """`rope_parameters` whose frequencies change past so many positions."""
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * (head_dim // 2),
        "long_factor": [4.0] * (head_dim // 2),
        "original_max_position_embeddings": positions,
    }


class ChosenExperts(nn.Module):
    """Experts in a list, of which each token chooses one: an expert that no token chooses does not run."""

    def __init__(self, width: int, num_experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, num_experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(num_experts))

    def forward(self, hidden: Tensor) -> Tensor:
        weights, chosen = self.router(hidden).softmax(-1).max(-1)
        found = torch.zeros_like(hidden)
        for number in chosen.unique().tolist():
            is_its = (chosen == number)[..., None]
            found = found + self.experts[number](hidden) * is_its
        return found * weights[..., None]


class ChoosingLlama(LlamaForCausalLM):
    """A Llama with experts in a list, in its first layer."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers[0].mlp = ChosenExperts(config.hidden_size)


class Skipping(nn.ModuleList):
    """Layers of which rows of fewer than 12 tokens run the first only."""

    are_short = False

    def __iter__(self) -> Any:
        layers = list(super().__iter__())
        return iter(layers[:1] if Skipping.are_short else layers)

    def __getitem__(self, index: Any) -> Any:
        return self if isinstance(index, slice) else super().__getitem__(index)


class SkippingLlama(LlamaForCausalLM):
    """A Llama of which short documents run the first layer only."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers = Skipping(self.model.layers)
        self.model.embed_tokens.register_forward_pre_hook(_note_length)


def _note_length(_: nn.Module, args: tuple[Tensor, ...]) -> None:
    Skipping.are_short = args[0].shape[1] < 12
