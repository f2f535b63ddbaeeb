"""Fields of tiny configurations whose documents do not all run in plain packs."""

from __future__ import annotations

from typing import Any

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
