"""What is minimised over preference pairs without a reward model: DPO and variants.

loss = sum over pairs of weight * its loss / sum of weights
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmtrain.batch import PreferencePairs
from llmtrain.config.rl import PreferenceLossName
from llmtrain.objectives.policy_losses import per_sample
from llmtrain.objectives.preference_losses import (
    PAIR_LOSS_FUNCTIONS,
    PairLogprobs,
    PreferenceOptions,
    correctness,
)
from llmtrain.protocols import Counts, Metrics


class LossesAndRewards(NamedTuple):
    """The pairs of a microbatch; only the losses have a gradient."""

    losses: Float[Tensor, " pairs"]
    chosen_rewards: Float[Tensor, " pairs"]  # implied by log ratios to the reference, or by logprobs without one
    rejected_rewards: Float[Tensor, " pairs"]
    chosen_logprobs: Float[Tensor, " pairs"]  # nats per answer


@dataclass(frozen=True)
class PairwisePreference:
    """One of PAIR_LOSS_FUNCTIONS over the pairs of a step; the model gives a logprob for each label."""

    loss_name: PreferenceLossName
    options: PreferenceOptions

    def counts(self, batch: PreferencePairs) -> Counts:
        """Tokens of answers, and comparisons: all pairs of one ranking are one comparison."""
        return {"tokens": sum(batch.answer_lengths), "pairs": float(batch.weights.sum())}

    def loss(self, model: nn.Module, batch: PreferencePairs, totals: Counts) -> tuple[Tensor, Metrics]:
        """The batch's share of the mean over all comparisons of the step; a tie is half right."""
        found = self.losses_and_rewards(model(batch).logprobs, batch)
        margins = found.chosen_rewards - found.rejected_rewards
        share = (batch.weights * found.losses).sum() / totals["pairs"]
        values = {
            "accuracy": correctness(margins),
            "margin": margins,
            "chosen_reward": found.chosen_rewards,
            "rejected_reward": found.rejected_rewards,
            "chosen_logprob": found.chosen_logprobs,
        }
        shares = {name: (batch.weights * value).sum() / totals["pairs"] for name, value in values.items()}
        return share, {"loss": share.detach(), **shares}

    def losses_and_rewards(self, logprobs: Float[Tensor, " labels"], batch: PreferencePairs) -> LossesAndRewards:
        """What the logprobs of a batch's labels amount to for each of its pairs."""
        answers = per_sample(logprobs, batch.answer_lengths)  # (2 pairs,): chosen, rejected, chosen, ...
        lengths = torch.tensor(batch.answer_lengths, dtype=answers.dtype, device=answers.device)
        lengths = lengths.clamp(min=1)  # the answers of an empty batch have no tokens
        reference = batch.ref_logprobs
        pairs = PairLogprobs(
            chosen=answers[::2],
            rejected=answers[1::2],
            ref_chosen=None if reference is None else reference[::2],
            ref_rejected=None if reference is None else reference[1::2],
            chosen_lengths=lengths[::2],
            rejected_lengths=lengths[1::2],
        )
        found = PAIR_LOSS_FUNCTIONS[self.loss_name](pairs, self.options)
        return LossesAndRewards(*found, chosen_logprobs=pairs.chosen.detach())
