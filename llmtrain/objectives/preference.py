"""What is minimised over preferences without a reward model: DPO and its kin over pairs, KTO over single answers.

loss = sum over pairs, or answers, of weight * its loss / sum of weights
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llmtrain.batch import JudgedAnswers, PreferencePairs
from llmtrain.config.rl import PreferenceConfig
from llmtrain.objectives.policy_losses import per_sample
from llmtrain.objectives.preference_losses import (
    PAPER_OPTIONS,
    PREFERENCE_LOSSES,
    PairLogprobs,
    PreferenceOptions,
    kto,
)
from llmtrain.protocols import Counts, Metrics


class JudgedPairs(NamedTuple):
    """The pairs of a microbatch as a loss sees them; all but the losses without gradient."""

    losses: Float[Tensor, " pairs"]
    chosen_rewards: Float[Tensor, " pairs"]  # implied by the log ratios to the reference, or the logprobs themselves
    rejected_rewards: Float[Tensor, " pairs"]
    chosen_logprobs: Float[Tensor, " pairs"]  # nats an answer


@dataclass(frozen=True)
class PairwisePreference:
    """One of PREFERENCE_LOSSES over the pairs of a step; the model gives a logprob for each label."""

    loss_name: str
    options: PreferenceOptions

    def counts(self, batch: PreferencePairs) -> Counts:
        """Tokens of answers, and comparisons: a ranking's pairs are one together."""
        return {"tokens": sum(batch.answer_lengths), "pairs": float(batch.weights.sum())}

    def loss(self, model: nn.Module, batch: PreferencePairs, totals: Counts) -> tuple[Tensor, Metrics]:
        """The batch's share of the mean over all comparisons of the step; of accuracy, a tie counts half."""
        judged = self.judge(model(batch).logprobs, batch)
        margins = judged.chosen_rewards - judged.rejected_rewards
        share = (batch.weights * judged.losses).sum() / totals["pairs"]
        values = {
            "accuracy": (margins > 0) + (margins == 0) / 2,
            "margin": margins,
            "chosen_reward": judged.chosen_rewards,
            "rejected_reward": judged.rejected_rewards,
            "chosen_logprob": judged.chosen_logprobs,
        }
        shares = {name: (batch.weights * value).sum() / totals["pairs"] for name, value in values.items()}
        return share, {"loss": share.detach(), **shares}

    def judge(self, logprobs: Float[Tensor, " labels"], batch: PreferencePairs) -> JudgedPairs:
        """The pairs of a batch by the logprobs of its labels."""
        answers = per_sample(logprobs, batch.answer_lengths)  # (2 pairs,)
        lengths = torch.tensor(batch.answer_lengths, dtype=answers.dtype, device=answers.device)
        lengths = lengths.clamp(min=1)  # an empty batch's answers have no token
        reference = batch.ref_logprobs
        pairs = PairLogprobs(
            chosen=answers[::2],
            rejected=answers[1::2],
            ref_chosen=None if reference is None else reference[::2],
            ref_rejected=None if reference is None else reference[1::2],
            chosen_lengths=lengths[::2],
            rejected_lengths=lengths[1::2],
        )
        return JudgedPairs(*PREFERENCE_LOSSES[self.loss_name](pairs, self.options), pairs.chosen.detach())


@dataclass(frozen=True)
class JudgedPreference:
    """KTO over answers that are judged one by one; the model gives a logprob for each label."""

    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def counts(self, batch: JudgedAnswers) -> Counts:
        """Tokens of answers, and answers, each by its weight."""
        return {"tokens": sum(batch.answer_lengths), "answers": float(batch.weights.sum())}

    def loss(self, model: nn.Module, batch: JudgedAnswers, totals: Counts) -> tuple[Tensor, Metrics]:
        """The batch's share of the mean over all answers of the step.

        `accuracy`: the share of answers on the right side of the KL; `signed_reward`: what is good about the implied
        rewards, those of undesirable answers taken negative.
        """
        assert batch.kl is not None
        ratios = log_ratios(model(batch).logprobs, batch)
        losses, rewards = self.judge(ratios, batch.desirable, batch.kl)
        share = (batch.weights * losses).sum() / totals["answers"]
        values = {
            "accuracy": is_right(ratios.detach(), batch.desirable, batch.kl),
            "signed_reward": torch.where(batch.desirable, rewards, -rewards),
        }
        shares = {name: (batch.weights * value).sum() / totals["answers"] for name, value in values.items()}
        return share, {"loss": share.detach(), **shares}

    def judge(
        self, ratios: Float[Tensor, " answers"], desirable: Bool[Tensor, " answers"], kl: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, " answers"], Float[Tensor, " answers"]]:
        """Losses and implied rewards of answers by their log ratios to the reference; rewards without gradient."""
        nothing = torch.zeros_like(ratios)
        return kto(ratios, nothing, desirable, kl, self.beta, self.desirable_weight, self.undesirable_weight)


def log_ratios(logprobs: Float[Tensor, " labels"], batch: JudgedAnswers) -> Float[Tensor, " answers"]:
    """log p(answer) - log p_ref(answer) of each answer, in nats."""
    assert batch.ref_logprobs is not None
    return per_sample(logprobs, batch.answer_lengths) - batch.ref_logprobs


def is_right(
    ratios: Float[Tensor, " answers"], desirable: Bool[Tensor, " answers"], kl: Float[Tensor, ""]
) -> Float[Tensor, " answers"]:
    """Whether an answer became likelier than the policy moved on the whole, and so is thought desirable, rightly.

    1 or 0, and 1/2 where it did neither.
    """
    moved = torch.where(desirable, ratios - kl, kl - ratios)
    return (moved > 0) + (moved == 0) / 2


def preference_options(config: PreferenceConfig) -> PreferenceOptions:
    """What shapes the loss: as configured, else as its paper has it."""
    given = {"beta": config.beta, "label_smoothing": config.label_smoothing, "gamma": config.gamma}
    return replace(PAPER_OPTIONS[config.loss], **{name: value for name, value in given.items() if value is not None})
