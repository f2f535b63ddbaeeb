"""The step of nanoGPT's CPU set-up for character-level Shakespeare, reimplemented, for `shakespeare.py`.

    python benchmarks/nanogpt_step.py INPUT.txt STEPS

Prints the seconds of each step, after a warm-up, as a JSON list.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

LAYERS, HEADS, WIDTH, CONTEXT, ROWS = 4, 4, 128, 64, 12
LR, BETAS, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-3, (0.9, 0.99), 0.1, 1.0
WARMUP_STEPS = 20


class Block(nn.Module):
    """Attention and a four times wider MLP, each on a normalised input and added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = (nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, stream: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq width"]:
        split = self.qkv(self.attention_norm(stream)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (batch, heads, seq, head_dim)
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        stream = stream + self.out(attended.transpose(1, 2).flatten(2))
        return stream + self.down(gelu(self.up(self.mlp_norm(stream))))


class Gpt(nn.Module):
    """Characters to the loss of predicting the next ones; the output head is the embedding."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        """Mean cross-entropy over all positions."""
        stream = self.blocks(self.tokens(inputs) + self.positions.weight)
        logits = self.norm(stream) @ self.tokens.weight.t()
        return cross_entropy(logits.flatten(0, 1), targets.flatten())


def draw_rows(data: Int[Tensor, " characters"]) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Rows from random places, and the characters that follow."""
    starts = torch.randint(len(data) - CONTEXT, (ROWS,)).tolist()
    inputs = torch.stack([data[start : start + CONTEXT] for start in starts])
    return inputs, torch.stack([data[start + 1 : start + 1 + CONTEXT] for start in starts])


def train_step(model: Gpt, optimizer: torch.optim.Optimizer, data: Int[Tensor, " characters"]) -> float:
    """One optimizer step; gives its loss."""
    loss = model(*draw_rows(data))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def main() -> None:
    path, num_steps = Path(sys.argv[1]), int(sys.argv[2])
    text = path.read_text(encoding="utf-8")
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[character] for character in text])
    torch.manual_seed(0)
    model = Gpt(len(ids))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    seconds = []
    for _ in range(WARMUP_STEPS + num_steps):
        started = time.perf_counter()
        train_step(model, optimizer, data)
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds[WARMUP_STEPS:]))


if __name__ == "__main__":
    main()
