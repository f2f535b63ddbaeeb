"""Logits and noise -> tokens with their logprobs, by two exponential races: between blocks, then in a block.

    block = argmax over b of (w_1 + ... + w_256 of block b) / noise_b
    token = argmax over k in it of w_k / noise_k,   w = exp(logits / temperature), 0 for an excluded token

In a race of exponential clocks each is first with a probability in proportion to its weight (the Gumbel-max trick is
the logarithm of this). Two short races take a hundredth of the noise of one over the whole vocabulary. Rounding
changes a token only if it makes two runners change places; inverting the cumulative distribution is less robust, since
rounding moves every bound of a flat distribution (one token in a hundred of SmolLM2, on prompts of random tokens). A
row's token and logprob do not depend on the rows beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from llmtrain.batch import SamplingMask
from llmtrain.rollout.engine import Sampling

BLOCK = 256  # tokens; about the square root of a vocabulary, so that both races are short
FIRST_CANDIDATES = 64  # likeliest tokens in which top-p looks first; a full sort takes 30 times as long


class Draws(NamedTuple):
    """A token for each row."""

    token_ids: Int[Tensor, " rows"]
    logprobs: Float[Tensor, " rows"]  # under the distribution that it was sampled from
    sampling_mask: SamplingMask | None  # None: no token was excluded


def noise_count(vocab_size: int) -> int:
    """Noise numbers per token."""
    return -(-vocab_size // BLOCK) + BLOCK


def draw(logits: Float[Tensor, "rows vocab"], noise: Float64[Tensor, "rows noise"], sampling: Sampling) -> Draws:
    """A token for each row, its logprob and the sampling mask; `noise`: `noise_count` exponentials per row.

    At temperature 0 it is the likeliest token, the first of equal ones, with its logprob at temperature 1. Logits that
    are not finite give a logprob that is not finite.
    """
    if logits.device.type == "mps":  # it has no float64
        logits = logits.cpu()
    vocab = logits.shape[-1]
    num_blocks = -(-vocab // BLOCK)
    logits = logits.float()
    shifted = logits - logits.amax(-1, keepdim=True)
    if sampling.temperature > 0:
        shifted /= sampling.temperature
    weights = shifted.exp()
    if sampling.excludes_tokens:
        weights = keep_likely(weights, sampling.top_p, sampling.top_k)
    blocks = torch.nn.functional.pad(weights, (0, num_blocks * BLOCK - vocab)).unflatten(-1, (num_blocks, BLOCK))
    totals = blocks.sum(-1, dtype=torch.float64)  # (rows, blocks)
    if sampling.temperature == 0:
        token_ids = shifted.argmax(-1, keepdim=True)
    else:
        block_noise, token_noise = noise.to(logits.device).split([num_blocks, BLOCK], dim=-1)
        first = (totals / block_noise).argmax(-1, keepdim=True)  # (rows, 1)
        runners = blocks.take_along_dim(first[..., None], 1)[:, 0]  # (rows, BLOCK)
        token_ids = first * BLOCK + (runners / token_noise).argmax(-1, keepdim=True)
    logprobs = shifted.gather(-1, token_ids) - totals.sum(-1, keepdim=True).log()
    mask = None
    if sampling.excludes_tokens:
        allowed = weights > 0
        mask = SamplingMask(allowed.nonzero()[:, 1].int(), tuple(allowed.sum(-1).tolist()))
    return Draws(token_ids[:, 0], logprobs[:, 0].float(), mask)


def keep_likely(weights: Float[Tensor, "rows vocab"], top_p: float, top_k: int | None) -> Float[Tensor, "rows vocab"]:
    """Weights (unnormalised probabilities) with all but the likeliest set to 0; equally likely tokens stay together."""
    vocab = weights.shape[-1]
    if top_k is not None and top_k < vocab:
        cutoff = weights.topk(top_k).values[:, -1:]
        weights = torch.where(weights >= cutoff, weights, 0.0)
    if top_p == 1:
        return weights
    # cumsum adds each row in order; sum may split a row if there are few, and so depend on the batch.
    budget = top_p * weights.cumsum(-1, dtype=torch.float64)[:, -1:]
    num_candidates = min(FIRST_CANDIDATES, vocab)
    while True:
        likely = weights.topk(num_candidates).values  # (rows, candidates), falling
        reached = likely.cumsum(-1, dtype=torch.float64)
        if num_candidates == vocab or bool((reached[:, -1:] >= budget).all()):
            break
        num_candidates = min(8 * num_candidates, vocab)
    last = (reached - likely < budget).sum(-1, keepdim=True) - 1  # of those whose likelier ones sum to less
    return torch.where(weights >= likely.gather(-1, last.clamp_(min=0)), weights, 0.0)
