"""Logits and noise -> tokens with their logprobs, by two exponential races: among blocks of the vocabulary, within one.

    block = argmax over b of (w_1 + ... + w_256 of block b) / noise_b
    token = argmax over k in it of w_k / noise_k,             w = exp(logits / temperature) where kept

Whoever is first in a race of exponential clocks is drawn in proportion to its weight (the Gumbel-max trick is its
logarithm). Two short races take a hundredth of the noise of one over the vocabulary. Rounding changes a token as
rarely as it makes two runners change places; where a uniform number is looked up in the cumulative distribution, a
flat distribution moves every bound (one token in a hundred of SmolLM2, on prompts of random tokens). A row's token and
logprob do not depend on the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from llmtrain.batch import KeptTokens

BLOCK = 256  # tokens; about the square root of a vocabulary, so that both races are short
FIRST_CANDIDATES = 64  # the likeliest tokens, among which top-p is looked for first; a full sort costs 30 times as much


class Draws(NamedTuple):
    """A token for each row."""

    token_ids: Int[Tensor, " rows"]
    logprobs: Float[Tensor, " rows"]  # under the distribution that it was drawn from
    kept: KeptTokens | None  # what it was drawn among; None: any token


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. Raises ValueError for a value out of its range."""

    max_new_tokens: int
    temperature: float = 1.0  # 0: the likeliest token each time
    top_p: float = 1.0  # keep the fewest likeliest tokens whose probabilities reach this (Holtzman et al. 2020); 1: off
    top_k: int | None = None  # keep this many likeliest tokens, before top_p; None: off
    stop_ids: tuple[int, ...] = ()  # tokens that end a response, and belong to it
    seed: int = 0
    rollout: int = 0  # number of the rollout: another one draws other noise

    def __post_init__(self) -> None:
        ranges = {
            "max_new_tokens": (self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature, 0 <= self.temperature < float("inf"), "0 or more"),
            "top_p": (self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k, self.top_k is None or self.top_k >= 1, "at least 1, or none"),
        }
        for name, (value, holds, allowed) in ranges.items():
            if not holds:
                raise ValueError(f"rollout.{name}={value}: must be {allowed}")

    @property
    def keeps_some(self) -> bool:
        """Whether a token is drawn among some of the vocabulary only."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k is not None)


def noise_count(vocab_size: int) -> int:
    """Numbers of noise that a token takes."""
    return -(-vocab_size // BLOCK) + BLOCK


def draw(logits: Float[Tensor, "rows vocab"], noise: Float64[Tensor, "rows noise"], settings: Sampling) -> Draws:
    """A token for each row, its logprob, and what it was drawn among.

    At temperature 0 it is the likeliest token, the first of equal ones, with its logprob at temperature 1. Logits that
    are not finite give a logprob that is not finite.
    """
    if logits.device.type == "mps":  # which has no float64
        logits = logits.cpu()
    vocab = logits.shape[-1]
    num_blocks = -(-vocab // BLOCK)
    logits = logits.float()
    shifted = logits - logits.amax(-1, keepdim=True)
    if settings.temperature > 0:
        shifted /= settings.temperature
    weights = shifted.exp()
    if settings.keeps_some:
        weights = keep_likely(weights, settings.top_p, settings.top_k)
    blocks = torch.nn.functional.pad(weights, (0, num_blocks * BLOCK - vocab)).unflatten(-1, (num_blocks, BLOCK))
    totals = blocks.sum(-1, dtype=torch.float64)  # (rows, blocks)
    if settings.temperature == 0:
        token_ids = shifted.argmax(-1, keepdim=True)
    else:
        for_blocks, within = noise.to(logits.device).split([num_blocks, BLOCK], dim=-1)
        first = (totals / for_blocks).argmax(-1, keepdim=True)  # (rows, 1)
        runners = blocks.take_along_dim(first[..., None], 1)[:, 0]  # (rows, BLOCK)
        token_ids = first * BLOCK + (runners / within).argmax(-1, keepdim=True)
    logprobs = shifted.gather(-1, token_ids) - totals.sum(-1, keepdim=True).log()
    kept = None
    if settings.keeps_some:
        keeps = weights > 0
        kept = KeptTokens(keeps.nonzero()[:, 1].int(), tuple(keeps.sum(-1).tolist()))
    return Draws(token_ids[:, 0], logprobs[:, 0].float(), kept)


def keep_likely(weights: Float[Tensor, "rows vocab"], top_p: float, top_k: int | None) -> Float[Tensor, "rows vocab"]:
    """Weights (unnormalised probabilities), zero outside the likeliest tokens; equally likely ones stay together."""
    vocab = weights.shape[-1]
    if top_k is not None and top_k < vocab:
        cutoff = weights.topk(top_k).values[:, -1:]
        weights = torch.where(weights >= cutoff, weights, 0.0)
    if top_p == 1:
        return weights
    # A running sum adds each row in order; a plain one may split a row where there are few.
    budget = top_p * weights.cumsum(-1, dtype=torch.float64)[:, -1:]
    num_candidates = min(FIRST_CANDIDATES, vocab)
    while True:
        likely = weights.topk(num_candidates).values  # (rows, candidates), falling
        reached = likely.cumsum(-1, dtype=torch.float64)
        if num_candidates == vocab or bool((reached[:, -1:] >= budget).all()):
            break
        num_candidates = min(8 * num_candidates, vocab)
    last = (reached - likely < budget).sum(-1, keepdim=True) - 1  # kept: while the likelier ones do not reach it
    return torch.where(weights >= likely.gather(-1, last.clamp_(min=0)), weights, 0.0)
