"""Losses over preferences: reward modelling, DPO and variants over pairs, KTO over single answers.

Logprobs are sums over the tokens of an answer, in nats; lengths count those tokens. Each function gives the loss of
each pair; the objective weights them and divides by the pairs of the step. With r = log p(answer) - log p_ref(answer),

dpo = -log sigmoid(beta * (r_chosen - r_rejected))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from llmtrain.config.rl import PreferenceLossName
from llmtrain.protocols import Array

Margins = TypeVar("Margins", Tensor, Array)


@dataclass(frozen=True)
class PairLogprobs:
    """Logprobs of the answers of pairs under the policy, and under the reference if the loss needs it."""

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    ref_chosen: Float[Tensor, " pairs"] | None
    ref_rejected: Float[Tensor, " pairs"] | None
    chosen_lengths: Float[Tensor, " pairs"]  # tokens
    rejected_lengths: Float[Tensor, " pairs"]


@dataclass(frozen=True)
class PreferenceOptions:
    """The parameters of the losses over pairs. `config.rl.PREFERENCE_LOSSES` has each paper's defaults."""

    beta: float  # IPO's tau, ORPO's lambda
    label_smoothing: float = 0.0  # fraction of pairs assumed to have swapped labels (cDPO)
    gamma: float = 0.0  # target margin (SimPO)


class PreferenceLoss(NamedTuple):
    """The loss of each pair, differentiable, and the implied rewards of its answers, detached."""

    losses: Float[Tensor, " pairs"]
    chosen_rewards: Float[Tensor, " pairs"]
    rejected_rewards: Float[Tensor, " pairs"]


def bradley_terry(
    chosen_scores: Float[Tensor, " pairs"],
    rejected_scores: Float[Tensor, " pairs"],
    margins: Float[Tensor, " pairs"] | None = None,
    weights: Float[Tensor, " pairs"] | None = None,
    centering: float = 0.0,
) -> Float[Tensor, " pairs"]:
    """weight * (-log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected)^2).

    Sources: Ouyang 2022, equation 1; the margin, Touvron 2023 (Llama 2), equation 2; centring, Eisenstein 2023.
    """
    difference = chosen_scores - rejected_scores
    losses = -logsigmoid(difference if margins is None else difference - margins)
    if centering:
        losses = losses + centering * (chosen_scores + rejected_scores) ** 2
    return losses if weights is None else weights * losses


def dpo(pairs: PairLogprobs, options: PreferenceOptions) -> PreferenceLoss:
    """Direct preference optimisation (Rafailov 2023, equation 7)."""
    chosen, rejected = _log_ratios(pairs)
    return _rewarded(-logsigmoid(options.beta * (chosen - rejected)), options.beta, chosen, rejected)


def cdpo(pairs: PairLogprobs, options: PreferenceOptions) -> PreferenceLoss:
    """DPO with a fraction `label_smoothing` of the labels swapped (conservative DPO: Mitchell 2023)."""
    chosen, rejected = _log_ratios(pairs)
    logits = options.beta * (chosen - rejected)
    smoothing = options.label_smoothing
    losses = -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)
    return _rewarded(losses, options.beta, chosen, rejected)


def ipo(pairs: PairLogprobs, options: PreferenceOptions) -> PreferenceLoss:
    """The squared distance of the difference of log ratios from 1 / (2 beta) (Azar 2023, equation 17).

    Log ratios are means over tokens, as in the paper's experiments (which TRL learned from the authors).
    """
    chosen, rejected = _log_ratios(pairs)
    difference = chosen / pairs.chosen_lengths - rejected / pairs.rejected_lengths
    return _rewarded((difference - 1 / (2 * options.beta)) ** 2, options.beta, chosen, rejected)


def orpo(pairs: PairLogprobs, options: PreferenceOptions) -> PreferenceLoss:
    """The chosen answer's negative log-likelihood per token plus beta * odds ratio loss (Hong 2024, equations 6, 7).

    Odds are of the mean logprob per token. No reference. TRL's likelihood includes the prompt; the paper's does not.
    """
    chosen, rejected = _mean_logprobs(pairs)
    losses = -chosen - options.beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return _rewarded(losses, options.beta, chosen, rejected)


def simpo(pairs: PairLogprobs, options: PreferenceOptions) -> PreferenceLoss:
    """A margin `gamma` between mean logprobs per token, without a reference (Meng 2024, equation 6)."""
    chosen, rejected = _mean_logprobs(pairs)
    losses = -logsigmoid(options.beta * (chosen - rejected) - options.gamma)
    return _rewarded(losses, options.beta, chosen, rejected)


class PairLoss(Protocol):
    """A loss over pairs."""

    def __call__(self, pairs: PairLogprobs, options: PreferenceOptions) -> PreferenceLoss: ...


PAIR_LOSS_FUNCTIONS: dict[PreferenceLossName, PairLoss] = {
    "dpo": dpo,
    "cdpo": cdpo,
    "ipo": ipo,
    "orpo": orpo,
    "simpo": simpo,
}
"""The function of each loss over pairs; `config.rl.PREFERENCE_LOSSES` has what the configuration knows of it."""


def kto(
    log_ratios: Float[Tensor, " samples"],
    desirable: Bool[Tensor, " samples"],
    kl: Float[Tensor, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Float[Tensor, " samples"], Float[Tensor, " samples"]]:
    """Losses and implied rewards of single labelled answers (Ethayarajh 2024, section 4).

    `log_ratios`: log p(answer) - log p_ref(answer). `kl`, in nats per answer and without gradient: the mean log ratio
    of prompts with answers to other prompts, over the whole step, at least 0.
    """
    better = torch.where(desirable, log_ratios - kl, kl - log_ratios)
    weights = torch.where(desirable, desirable_weight, undesirable_weight).to(better.dtype)
    return weights * (1 - torch.sigmoid(beta * better)), (beta * log_ratios).detach()


def correctness(margins: Margins) -> Margins:
    """1 for a pair that is ranked right (a margin above 0), 0 for one that is not, 1/2 for a tie."""
    return (margins > 0) + (margins == 0) / 2


def _log_ratios(pairs: PairLogprobs) -> tuple[Tensor, Tensor]:
    assert pairs.ref_chosen is not None and pairs.ref_rejected is not None
    return pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected


def _mean_logprobs(pairs: PairLogprobs) -> tuple[Tensor, Tensor]:
    return pairs.chosen / pairs.chosen_lengths, pairs.rejected / pairs.rejected_lengths


def _rewarded(losses: Tensor, beta: float, chosen: Tensor, rejected: Tensor) -> PreferenceLoss:
    return PreferenceLoss(losses, (beta * chosen).detach(), (beta * rejected).detach())


def _log_odds(logprobs: Tensor) -> Tensor:
    """log p / (1 - p), of the next smaller p if p is 1, whose odds are infinite."""
    logprobs = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return logprobs - torch.log(-torch.expm1(logprobs))
