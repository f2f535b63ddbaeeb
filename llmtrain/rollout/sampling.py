"""Logits and noise -> tokens with their logprobs, by inverting the cumulative distribution.

    token = the first k with  w_1 + ... + w_k > u (w_1 + ... + w_vocab),   w = exp(logits / temperature) where kept

One uniform number u a token costs a third of adding Gumbel noise to every logit and taking the largest (vocabulary of
49,152, 8 to 32 rows, CPU). A row's token and logprob do not depend on the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

FIRST_CANDIDATES = 64  # the likeliest tokens, among which top-p is looked for first; a full sort costs 30 times as much


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


def draw(
    logits: Float[Tensor, "rows vocab"], noise: Float64[Tensor, " rows"], settings: Sampling
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """A token for each row, and its logprob under the distribution that it was drawn from.

    At temperature 0 it is the likeliest token, the first of equal ones, with its logprob at temperature 1. Logits that
    are not finite give a logprob that is not finite.
    """
    if logits.device.type == "mps":  # which has no float64
        logits = logits.cpu()
    logits = logits.float()
    shifted = logits - logits.amax(-1, keepdim=True)
    if settings.temperature == 0:
        token_ids = shifted.argmax(-1, keepdim=True)
        cumulative = shifted.exp().cumsum(-1, dtype=torch.float64)
    else:
        shifted /= settings.temperature
        weights = keep_likely(shifted.exp(), settings.top_p, settings.top_k)
        cumulative = weights.cumsum(-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        # Below the total, or rounding could point past the last token of a weight above zero.
        target = torch.minimum(
            noise.to(logits.device)[:, None] * total, torch.nextafter(total, torch.zeros_like(total))
        )
        token_ids = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[-1] - 1)
    # A running sum adds each row in order; torch.logsumexp may split a row where there are few.
    logprobs = shifted.gather(-1, token_ids) - cumulative[:, -1:].log()
    return token_ids[:, 0], logprobs[:, 0].float()


def keep_likely(weights: Float[Tensor, "rows vocab"], top_p: float, top_k: int | None) -> Float[Tensor, "rows vocab"]:
    """Weights (unnormalised probabilities), zero outside the likeliest tokens; equally likely ones stay together."""
    vocab = weights.shape[-1]
    if top_k is not None and top_k < vocab:
        cutoff = weights.topk(top_k).values[:, -1:]
        weights = torch.where(weights >= cutoff, weights, 0.0)
    if top_p == 1:
        return weights
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
