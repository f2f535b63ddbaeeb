"""What a policy update minimises: a term for each response token, and how the terms of a step become its loss.

The responses of a microbatch lie end to end, without padding; `response_lengths` says where they part. A loss form
gives the terms, an aggregation divides their sum by totals of the whole step: the shares of microbatches and ranks
sum to the loss. With A the advantage of a token and ratio = p(token) / p_old(token), the first form is

term = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmtrain.protocols import Counts

KlKind = Literal["k1", "k2", "k3"]


class PolicyTerms(NamedTuple):
    """What a loss form gives for each response token."""

    losses: Float[Tensor, " tokens"]  # differentiable; an aggregation sums them
    clipped: Bool[Tensor, " tokens"]  # the clip decided: no gradient (PPO, GSPO), a bounded weight (CISPO)


PolicyLoss = Callable[[Tensor, Tensor, Tensor, Sequence[int], float, float], PolicyTerms]
"""(logprobs, old_logprobs, advantages, each (tokens,), response_lengths, clip_low, clip_high) -> terms."""

Aggregation = Callable[[Tensor, Sequence[int], Counts, int], Tensor]
"""(losses (tokens,), response_lengths, totals of the step, max_response_tokens) -> share, a scalar."""


def per_token(values: Float[Tensor, " samples"], response_lengths: Sequence[int]) -> Float[Tensor, " tokens"]:
    """The value of each sample at every token of its response."""
    lengths = torch.tensor(response_lengths, dtype=torch.long, device=values.device)
    return values.repeat_interleave(lengths, output_size=sum(response_lengths))


def per_sample(values: Float[Tensor, " tokens"], response_lengths: Sequence[int]) -> Float[Tensor, " samples"]:
    """The sum over each response, in a fixed order on every device; no samples: still attached to the graph."""
    if not response_lengths:
        return values[:0]
    return torch.stack([response.sum() for response in values.split(list(response_lengths))])


def ppo_clip(
    logprobs: Float[Tensor, " tokens"],
    old_logprobs: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    response_lengths: Sequence[int],
    clip_low: float,
    clip_high: float,
) -> PolicyTerms:
    """The clipped surrogate (Schulman 2017, equation 7); clip_high above clip_low is DAPO's (Yu 2025, section 3.1)."""
    return _clipped_surrogate((logprobs - old_logprobs).exp(), advantages, clip_low, clip_high)


def gspo(
    logprobs: Float[Tensor, " tokens"],
    old_logprobs: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    response_lengths: Sequence[int],
    clip_low: float,
    clip_high: float,
) -> PolicyTerms:
    """The surrogate of one ratio a response, the geometric mean of its tokens' (Zheng 2025, equations 5 and 7).

    With `sequence_mean` and one advantage a response the share is the paper's. The ratio of a response moves little:
    its clip ranges are about a thousandth of PPO's.
    """
    lengths = logprobs.new_tensor(response_lengths)
    mean_log_ratio = per_sample(logprobs - old_logprobs, response_lengths) / lengths
    return _clipped_surrogate(per_token(mean_log_ratio.exp(), response_lengths), advantages, clip_low, clip_high)


def cispo(
    logprobs: Float[Tensor, " tokens"],
    old_logprobs: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    response_lengths: Sequence[int],
    clip_low: float,
    clip_high: float,
) -> PolicyTerms:
    """REINFORCE under a clipped importance weight without gradient (MiniMax-M1 2025, equations 4 and 5).

    Every token keeps a gradient, -weight * A * grad log p. `clip_low` of 1 is no lower bound, as in the paper.
    """
    ratio = (logprobs - old_logprobs).exp().detach()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return PolicyTerms(-weight * advantages * logprobs, weight != ratio)


def reinforce(
    logprobs: Float[Tensor, " tokens"],
    old_logprobs: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    response_lengths: Sequence[int],
    clip_low: float,
    clip_high: float,
) -> PolicyTerms:
    """-A log p (Williams 1992): for one update a rollout, since nothing corrects for a policy that moved."""
    return PolicyTerms(-advantages * logprobs, torch.zeros_like(logprobs, dtype=torch.bool))


POLICY_LOSSES: dict[str, PolicyLoss] = {"ppo": ppo_clip, "gspo": gspo, "cispo": cispo, "reinforce": reinforce}


def token_mean(
    losses: Float[Tensor, " tokens"], response_lengths: Sequence[int], totals: Counts, max_response_tokens: int
) -> Float[Tensor, ""]:
    """Each token of the step weighs the same (PPO; Yu 2025, section 3.3)."""
    return losses.sum() / totals["tokens"]


def sequence_mean(
    losses: Float[Tensor, " tokens"], response_lengths: Sequence[int], totals: Counts, max_response_tokens: int
) -> Float[Tensor, ""]:
    """Each response weighs the same, and its tokens share that weight (GRPO: Shao 2024, equation 3)."""
    lengths = per_token(losses.new_tensor(response_lengths), response_lengths)
    return (losses / lengths).sum() / totals["sequences"]


def constant_length(
    losses: Float[Tensor, " tokens"], response_lengths: Sequence[int], totals: Counts, max_response_tokens: int
) -> Float[Tensor, ""]:
    """Each token weighs the same, whatever was generated beside it (Dr. GRPO: Liu 2025, section 3.2)."""
    return losses.sum() / (totals["sequences"] * max_response_tokens)


AGGREGATIONS: dict[str, Aggregation] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant_length": constant_length,
}


def kl_estimate(
    logprobs: Float[Tensor, " tokens"], ref_logprobs: Float[Tensor, " tokens"], kind: KlKind
) -> Float[Tensor, " tokens"]:
    """KL(policy || reference) at tokens drawn from the policy, in nats (Schulman, "Approximating KL Divergence", 2020).

    k1 has no bias but is negative at times; k2 is biased, of low variance; k3 has no bias and is never negative.
    """
    log_ratio = ref_logprobs - logprobs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio**2 / 2
    return log_ratio.exp() - 1 - log_ratio


def kl_loss(
    logprobs: Float[Tensor, " tokens"], ref_logprobs: Float[Tensor, " tokens"], kind: KlKind
) -> Float[Tensor, " tokens"]:
    """The KL of each token as a term of the loss, to be added to a form's (GRPO: Shao 2024, equation 4, takes k3).

    Raises ValueError for k1, whose gradient, grad log p, is zero on average.
    """
    if kind == "k1":
        raise ValueError("kl estimate k1 in the loss trains nothing: choose k2 or k3, or put the KL in the reward")
    return kl_estimate(logprobs, ref_logprobs, kind)


def policy_metrics(
    logprobs: Float[Tensor, " tokens"],
    old_logprobs: Float[Tensor, " tokens"],
    clipped: Bool[Tensor, " tokens"],
    totals: Counts,
) -> dict[str, Tensor]:
    """Shares of `clip_fraction` and of `approx_kl`, k3 of KL(old policy || policy) in nats a token."""
    kl = kl_estimate(old_logprobs, logprobs.detach(), "k3")
    return {"clip_fraction": clipped.sum() / totals["tokens"], "approx_kl": kl.sum() / totals["tokens"]}


def value_loss(
    values: Float[Tensor, " tokens"],
    old_values: Float[Tensor, " tokens"],
    returns: Float[Tensor, " tokens"],
    clip_range: float | None,
    totals: Counts,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The share of half the squared error, a mean over tokens, with shares of `value_loss` and `value_clip_fraction`.

    A value that has moved by more than `clip_range` (None: off) from old_values, towards its return, has no gradient
    (Huang 2022, "The 37 Implementation Details of PPO", detail 9).
    """
    errors = (values - returns) ** 2
    clipped = torch.zeros_like(errors, dtype=torch.bool)
    if clip_range is not None:
        bounded = old_values + (values - old_values).clamp(-clip_range, clip_range)
        bounded_errors = (bounded - returns) ** 2
        clipped = bounded_errors > errors
        errors = torch.maximum(errors, bounded_errors)
    share = errors.sum() / 2 / totals["tokens"]
    return share, {"value_loss": share.detach(), "value_clip_fraction": clipped.sum() / totals["tokens"]}


def entropy_bonus(
    entropies: Float[Tensor, " tokens"], entropy_coef: float, totals: Counts
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The share of -entropy_coef * mean entropy (Schulman 2017, equation 9), with the share of `entropy` in nats."""
    share = entropies.sum() / totals["tokens"]
    return -entropy_coef * share, {"entropy": share.detach()}


def _clipped_surrogate(
    ratio: Float[Tensor, " tokens"], advantages: Float[Tensor, " tokens"], clip_low: float, clip_high: float
) -> PolicyTerms:
    plain = ratio * advantages
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return PolicyTerms(-torch.minimum(plain, bounded), bounded < plain)
