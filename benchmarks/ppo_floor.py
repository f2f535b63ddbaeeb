"""What the parts of a PPO update cost at least: their floating-point operations, at this machine's fastest matmul.

    python benchmarks/ppo_floor.py        prints the FLOP/s of the largest of several fp32 matmuls

Counted are multiplications by weights, two operations for each weight and token, and attention's two products over the
places before a token, four for each of them and each channel. A backward costs the same again for the gradient of
activations, and once more for that of weights that are trained. The output head counts where a token is drawn or
scored; embeddings, norms, softmax and the optimizer count nothing, and neither does reading weights from memory, which
is what generation really waits for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MATMUL_SIZES = (1024, 2048, 3072)


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    hidden: int
    intermediate: int
    layers: int
    heads: int  # of queries
    key_heads: int
    head_width: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a model's `config.json`."""
        return cls(
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
            config["vocab_size"],
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each linear layer of a block."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        return [
            (self.hidden, queries),
            (self.hidden, keys),
            (self.hidden, keys),
            (queries, self.hidden),
            (self.hidden, self.intermediate),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        ]


@dataclass(frozen=True)
class Forward:
    """Operations of a forward over all episodes, by what happens to the weights."""

    frozen: float
    trained: float
    attention: float

    @property
    def alone(self) -> float:
        return self.frozen + self.trained + self.attention

    @property
    def with_backward(self) -> float:
        return 2 * self.frozen + 3 * self.trained + 3 * self.attention


def forward(shape: Shape, episodes: int, tokens: int, *, rank: int | None, head_tokens: int = 0) -> Forward:
    """A pass over episodes of `tokens`, the head on `head_tokens` of each. `rank`: of an adapter, which alone is
    trained; None: everything is.
    """
    weights = shape.layers * sum(ins * outs for ins, outs in shape.linears)
    base = 2.0 * episodes * (weights * tokens + shape.hidden * shape.vocabulary * head_tokens)
    pairs = tokens * (tokens + 1) / 2
    attention = 4.0 * episodes * pairs * shape.heads * shape.head_width * shape.layers
    if rank is None:
        return Forward(0.0, base, attention)
    added = shape.layers * rank * sum(ins + outs for ins, outs in shape.linears)
    return Forward(base, 2.0 * episodes * added * tokens, attention)


def parts(shape: Shape, setting: Mapping[str, Any], rank: int | None) -> dict[str, float]:
    """Operations of each part of our update: one shared base with adapters of `rank`, or (None) separate models."""
    episodes, epochs = setting["episodes"], setting["epochs"]
    response, tokens = setting["response_tokens"], setting["prompt_tokens"] + setting["response_tokens"] - 1
    policy = forward(shape, episodes, tokens, rank=rank, head_tokens=response)
    reference = forward(shape, episodes, tokens, rank=None, head_tokens=response)
    critic = forward(shape, episodes, tokens, rank=None)
    reads, updates = reference.alone, policy.with_backward  # the policy is read while it draws
    if rank is None:  # else the critic is a head on the policy's trunk
        reads, updates = reads + critic.alone, updates + critic.with_backward
    return {
        "generate": policy.alone,
        "score": forward(shape, episodes, tokens + 2, rank=rank).alone,  # to the end, and what says so
        "read": reads,
        "update": epochs * updates,
    }


def matmul_peak() -> float:
    """FLOP/s of the fastest of several fp32 matmuls on all cores."""
    import torch
    from torch.utils.benchmark import Timer

    def speed(size: int) -> float:
        a, b = torch.randn(2, size, size)
        timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
        return 2 * size**3 / timer.blocked_autorange(min_run_time=1.0).median

    return max(map(speed, MATMUL_SIZES))


if __name__ == "__main__":
    print(json.dumps(matmul_peak()))
