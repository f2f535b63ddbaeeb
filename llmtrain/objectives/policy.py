"""Policy optimisation over experience: PPO and its family differ by the names in `PolicyConfig` alone.

loss = aggregate(terms of the policy) + value_coef * value loss - entropy_coef * entropy + kl_coef * KL, if in the loss
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
    POLICY_LOSSES,
    entropy_bonus,
    kl_estimate,
    kl_loss,
    policy_metrics,
    value_loss,
)
from llmtrain.protocols import Counts, Metrics


@dataclass(frozen=True)
class PolicyObjective:
    """The surrogate of a policy update, with its critic's loss where there is a critic."""

    config: PolicyConfig
    max_response_tokens: int

    def counts(self, batch: Experience) -> Counts:
        lengths = batch.response_lengths if batch.trains != "critic" else ()  # a policy's half has counted them
        return {"tokens": sum(lengths), "sequences": len(lengths)}

    def loss(self, model: nn.Module, batch: Experience, totals: Counts) -> tuple[Tensor, Metrics]:
        """The batch's share; `loss` is the whole loss, `policy_loss` the surrogate's part."""
        said = model(batch)
        shares: list[Tensor] = []
        metrics: dict[str, Any] = {}
        if batch.trains != "critic":
            share, metrics = self._policy_share(said.logprobs, said.entropies, batch, totals)
            shares.append(share)
        if said.values is not None:
            assert batch.old_values is not None and batch.returns is not None
            value_clip = self.config.value_clip
            value_share, of_values = value_loss(said.values, batch.old_values, batch.returns, value_clip, totals)
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
        """The share of the surrogate, of the entropy, and of the KL where it is in the loss."""
        config, lengths = self.config, batch.response_lengths
        terms = POLICY_LOSSES[config.loss](
            logprobs, batch.old_logprobs, batch.advantages, lengths, config.clip_low, config.clip_high
        )
        losses = terms.losses
        metrics: dict[str, Any] = policy_metrics(logprobs, batch.old_logprobs, terms.clipped, totals)
        if batch.ref_logprobs is not None:
            kl = kl_estimate(logprobs.detach(), batch.ref_logprobs, "k1")
            metrics["kl"] = kl.sum() / totals["sequences"]
            if config.kl_in == "loss" and config.kl_coef:
                losses = losses + config.kl_coef * kl_loss(logprobs, batch.ref_logprobs, config.kl_kind)
        share = AGGREGATIONS[config.aggregation](losses, lengths, totals, self.max_response_tokens)
        metrics["policy_loss"] = share.detach()
        bonus, entropy = entropy_bonus(entropies, config.entropy_coef, totals)
        return share + bonus, metrics | entropy
