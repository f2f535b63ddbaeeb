"""What a policy update minimises: a loss per response token, and how the losses of a step are averaged.

The responses of a microbatch are end to end, without padding; `response_lengths` says where each ends. A loss form
gives the losses of tokens, an aggregation divides their sum by totals of the whole step: the shares of microbatches and
ranks sum to the loss. With A the advantage of a token and ratio = p(token) / p_old(token), the first form is

loss = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmtrain.config.rl import AggregationName, KlEstimator, PolicyLossName
from llmtrain.protocols import Counts

MAX_LOG_RATIO = 80.0  # exp(88.8) overflows in fp32


class PolicyTokens(NamedTuple):
    """The response tokens of a microbatch as a loss form sees them."""

    logprobs: Float[Tensor, " tokens"]  # differentiable
    old_logprobs: Float[Tensor, " tokens"]
    advantages: Float[Tensor, " tokens"]
    response_lengths: Sequence[int]

    @property
    def ratios(self) -> Float[Tensor, " tokens"]:
        """p(token) / p_old(token)."""
        return _ratios(self.logprobs - self.old_logprobs)


class PolicyTerms(NamedTuple):
    """The loss of each response token."""

    losses: Float[Tensor, " tokens"]  # differentiable; an aggregation sums them
    clipped: Bool[Tensor, " tokens"]  # the clip had an effect: no gradient (PPO, GSPO), a bounded weight (CISPO)


class PolicyLoss(Protocol):
    """A loss form."""

    def __call__(self, tokens: PolicyTokens, clip_low: float, clip_high: float) -> PolicyTerms: ...


class Aggregation(Protocol):
    """The share of a microbatch in the loss of the step; `totals` are those of the step."""

    def __call__(
        self,
        losses: Float[Tensor, " tokens"],
        response_lengths: Sequence[int],
        totals: Counts,
        max_response_tokens: int,
    ) -> Float[Tensor, ""]: ...


def per_token(values: Float[Tensor, " samples"], response_lengths: Sequence[int]) -> Float[Tensor, " tokens"]:
    """The value of each sample at every token of its response."""
    lengths = torch.tensor(response_lengths, dtype=torch.long, device=values.device)
    return values.repeat_interleave(lengths, output_size=sum(response_lengths))


def per_sample(values: Float[Tensor, " tokens"], response_lengths: Sequence[int]) -> Float[Tensor, " samples"]:
    """The sum over each response, in a fixed order on every device; no samples: still attached to the graph."""
    if not response_lengths:
        return values[:0]
    return torch.stack([response.sum() for response in values.split(list(response_lengths))])


def ppo_clip(tokens: PolicyTokens, clip_low: float, clip_high: float) -> PolicyTerms:
    """The clipped surrogate (Schulman 2017, equation 7); clip_high above clip_low is DAPO's (Yu 2025, section 3.1)."""
    return _clipped_surrogate(tokens.ratios, tokens.advantages, clip_low, clip_high)


def gspo(tokens: PolicyTokens, clip_low: float, clip_high: float) -> PolicyTerms:
    """The surrogate with one ratio per response, the geometric mean over its tokens (Zheng 2025, equations 5 and 7).

    With `sequence_mean` and one advantage per response the share is the paper's. The ratio of a response moves little:
    its clip ranges are about a thousandth of PPO's.
    """
    lengths = tokens.logprobs.new_tensor(tokens.response_lengths)
    mean_log_ratios = per_sample(tokens.logprobs - tokens.old_logprobs, tokens.response_lengths) / lengths
    ratios = per_token(_ratios(mean_log_ratios), tokens.response_lengths)
    return _clipped_surrogate(ratios, tokens.advantages, clip_low, clip_high)


def cispo(tokens: PolicyTokens, clip_low: float, clip_high: float) -> PolicyTerms:
    """REINFORCE with a clipped importance weight, which has no gradient (MiniMax-M1 2025, equations 4 and 5).

    Every token keeps a gradient, -weight * A * grad log p. `clip_low` of 1 is no lower bound, as in the paper.
    """
    ratios = tokens.ratios.detach()
    weights = ratios.clamp(1 - clip_low, 1 + clip_high)
    return PolicyTerms(-weights * tokens.advantages * tokens.logprobs, weights != ratios)


def reinforce(tokens: PolicyTokens, clip_low: float, clip_high: float) -> PolicyTerms:
    """-A log p (Williams 1992): for one step per rollout, since nothing corrects for a policy that has moved."""
    losses = -tokens.advantages * tokens.logprobs
    return PolicyTerms(losses, torch.zeros_like(losses, dtype=torch.bool))


POLICY_LOSS_FUNCTIONS: dict[PolicyLossName, PolicyLoss] = {
    "ppo": ppo_clip,
    "gspo": gspo,
    "cispo": cispo,
    "reinforce": reinforce,
}
"""The function of each loss; `config.rl.POLICY_LOSSES` has what the configuration knows of it."""


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
    """Each token weighs the same, whatever the lengths of the responses (Dr. GRPO: Liu 2025, section 3.2)."""
    return losses.sum() / (totals["sequences"] * max_response_tokens)


AGGREGATIONS: dict[AggregationName, Aggregation] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant_length": constant_length,
}


def kl_estimate(
    logprobs: Float[Tensor, " tokens"], ref_logprobs: Float[Tensor, " tokens"], estimator: KlEstimator
) -> Float[Tensor, " tokens"]:
    """KL(policy || reference) at tokens drawn from the policy, in nats (Schulman, "Approximating KL Divergence", 2020).

    k1 is unbiased, but sometimes negative; k2 is biased, of low variance; k3 is unbiased and never negative.
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio**2 / 2
    return log_ratio.exp() - 1 - log_ratio


def kl_loss(
    logprobs: Float[Tensor, " tokens"], ref_logprobs: Float[Tensor, " tokens"], estimator: KlEstimator
) -> Float[Tensor, " tokens"]:
    """The KL of each token, to be added to the losses of a form (GRPO: Shao 2024, equation 4, with k3).

    Raises ValueError for k1, whose gradient, grad log p, is zero on average.
    """
    if estimator == "k1":
        raise ValueError("kl estimate k1 in the loss trains nothing: choose k2 or k3, or put the KL in the reward")
    return kl_estimate(logprobs, ref_logprobs, estimator)


def policy_metrics(
    logprobs: Float[Tensor, " tokens"],
    old_logprobs: Float[Tensor, " tokens"],
    clipped: Bool[Tensor, " tokens"],
    totals: Counts,
) -> dict[str, Tensor]:
    """Shares of `clip_fraction`, and of `approx_kl`: KL(old policy || policy) by k3, in nats per token."""
    kl = kl_estimate(old_logprobs, logprobs.detach(), "k3")
    return {"clip_fraction": clipped.sum() / totals["tokens"], "approx_kl": kl.sum() / totals["tokens"]}


def value_loss(
    values: Float[Tensor, " tokens"],
    old_values: Float[Tensor, " tokens"],
    returns: Float[Tensor, " tokens"],
    clip_range: float | None,
    totals: Counts,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The share of half the mean squared error over tokens; metrics `value_loss` and `value_clip_fraction`.

    A value that has moved by more than `clip_range` (None: off) from its old value, towards its return, gets no
    gradient (Huang 2022, "The 37 Implementation Details of PPO", detail 9).
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
    """The share of -entropy_coef * mean entropy (Schulman 2017, equation 9); metric `entropy`, nats per token."""
    share = entropies.sum() / totals["tokens"]
    return -entropy_coef * share, {"entropy": share.detach()}


def _ratios(log_ratios: Float[Tensor, " any"]) -> Float[Tensor, " any"]:
    """exp, bounded: an infinite ratio, though clipped, has the gradient 0 * inf, which makes the whole step NaN."""
    return log_ratios.clamp(max=MAX_LOG_RATIO).exp()


def _clipped_surrogate(
    ratios: Float[Tensor, " tokens"], advantages: Float[Tensor, " tokens"], clip_low: float, clip_high: float
) -> PolicyTerms:
    plain = ratios * advantages
    bounded = ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    return PolicyTerms(-torch.minimum(plain, bounded), bounded < plain)
