"""Policy optimisation over experience: PPO and its variants differ only in the names in `PolicyConfig`.

loss = aggregate(losses of tokens) + value_coef * value loss - entropy_coef * entropy (+ kl_coef * KL, if in the loss)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmtrain.batch import Experience
from llmtrain.config.rl import PolicyConfig
from llmtrain.objectives.policy_losses import (
    AGGREGATIONS,
    POLICY_LOSS_FUNCTIONS,
    PolicyTokens,
    entropy_bonus,
    kl_estimate,
    kl_loss,
    policy_metrics,
    value_loss,
)
from llmtrain.protocols import Counts, Metrics


@dataclass(frozen=True)
class PolicyObjective:
    """The loss of a policy, and of its critic if it has one."""

    config: PolicyConfig
    max_response_tokens: int

    def counts(self, batch: Experience) -> Counts:
        """Response tokens, and responses as sequences."""
        lengths = batch.response_lengths if batch.trains != "critic" else ()  # the policy's microbatch counts them
        return {"tokens": sum(lengths), "sequences": len(lengths)}

    def loss(self, model: nn.Module, batch: Experience, totals: Counts) -> tuple[Tensor, Metrics]:
        """The batch's share; the metric `loss` is the whole loss, `policy_loss` the surrogate's part."""
        outputs = model(batch)
        shares: list[Tensor] = []
        metrics: dict[str, Any] = {}
        if batch.trains != "critic":
            share, metrics = self._policy_share(outputs.logprobs, outputs.entropies, batch, totals)
            shares.append(share)
        if outputs.values is not None:
            assert batch.old_values is not None and batch.returns is not None
            value_clip = self.config.value_clip
            value_share, of_values = value_loss(outputs.values, batch.old_values, batch.returns, value_clip, totals)
            shares.append(self.config.value_coef * value_share)
            metrics |= of_values
        whole = torch.stack(shares).sum()
        metrics["loss"] = whole.detach()
        return whole, {name: torch.as_tensor(value).detach() for name, value in metrics.items()}

    def _policy_share(
        self,
        logprobs: Float[Tensor, " responses"],
        entropies: Float[Tensor, " responses"],
        batch: Experience,
        totals: Counts,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The share of the surrogate, of the entropy bonus, and of the KL if it is in the loss."""
        config, lengths = self.config, batch.response_lengths
        tokens = PolicyTokens(logprobs, batch.old_logprobs, batch.advantages, lengths)
        terms = POLICY_LOSS_FUNCTIONS[config.loss](tokens, config.clip_low, config.clip_high)
        losses = terms.losses
        metrics: dict[str, Any] = policy_metrics(logprobs, batch.old_logprobs, terms.clipped, totals)
        if batch.ref_logprobs is not None:
            kl = kl_estimate(logprobs.detach(), batch.ref_logprobs, "k1")
            metrics["kl"] = kl.sum() / totals["sequences"]
            if config.kl_placement == "loss" and config.kl_coef:
                losses = losses + config.kl_coef * kl_loss(logprobs, batch.ref_logprobs, config.kl_estimator)
        share = AGGREGATIONS[config.aggregation](losses, lengths, totals, self.max_response_tokens)
        metrics["policy_loss"] = share.detach()
        bonus, entropy = entropy_bonus(entropies, config.entropy_coef, totals)
        return share + bonus, metrics | entropy
