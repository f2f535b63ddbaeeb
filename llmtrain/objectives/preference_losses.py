"""What preferences say about a model, in one number a pair: reward modelling, DPO and its kin.

Logprobs are sums over the tokens of an answer, lengths count those tokens. Each function gives the losses of pairs;
the objective weighs them and divides by the pairs of the step. With r = log p(answer) - log p_ref(answer),

dpo = -log sigmoid(beta * (r_chosen - r_rejected))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairLogprobs:
    """The answers of the pairs of a microbatch under the policy, and under the reference where the loss needs it."""

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    ref_chosen: Float[Tensor, " pairs"] | None
    ref_rejected: Float[Tensor, " pairs"] | None
    chosen_lengths: Float[Tensor, " pairs"]  # tokens
    rejected_lengths: Float[Tensor, " pairs"]


@dataclass(frozen=True)
class PreferenceOptions:
    """What shapes the losses; each paper has its own `beta`, so it has no default."""

    beta: float  # IPO's tau, ORPO's lambda
    label_smoothing: float = 0.0  # the share of pairs thought to be labelled the wrong way round (cDPO)
    gamma: float = 0.0  # by how much the chosen is to be better (SimPO)


class PreferenceLoss(NamedTuple):
    """Losses of pairs, and the rewards that they imply; these are not differentiable."""

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
    """DPO where a share `label_smoothing` of the labels is wrong (Mitchell 2023, conservative DPO)."""
    chosen, rejected = _log_ratios(pairs)
    logits = options.beta * (chosen - rejected)
    smoothing = options.label_smoothing
    losses = -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)
    return _rewarded(losses, options.beta, chosen, rejected)


def ipo(pairs: PairLogprobs, options: PreferenceOptions) -> PreferenceLoss:
    """The squared distance of the log ratios' difference to 1 / (2 beta) (Azar 2023, equation 17).

    Log ratios are means over tokens, as in the paper's own experiments (TRL has that from its authors).
    """
    chosen, rejected = _log_ratios(pairs)
    difference = chosen / pairs.chosen_lengths - rejected / pairs.rejected_lengths
    return _rewarded((difference - 1 / (2 * options.beta)) ** 2, options.beta, chosen, rejected)


def orpo(pairs: PairLogprobs, options: PreferenceOptions) -> PreferenceLoss:
    """The chosen answer's negative log-likelihood a token, and beta times the odds ratio's loss (Hong 2024, 6 and 7).

    Odds are those of the mean logprob of a token. No reference. TRL's likelihood takes in the prompt; the paper's
    does not.
    """
    chosen, rejected = _mean_logprobs(pairs)
    losses = -chosen - options.beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return _rewarded(losses, options.beta, chosen, rejected)


def simpo(pairs: PairLogprobs, options: PreferenceOptions) -> PreferenceLoss:
    """A margin `gamma` between mean logprobs a token, without a reference (Meng 2024, equation 6)."""
    chosen, rejected = _mean_logprobs(pairs)
    losses = -logsigmoid(options.beta * (chosen - rejected) - options.gamma)
    return _rewarded(losses, options.beta, chosen, rejected)


PREFERENCE_LOSSES: dict[str, Callable[[PairLogprobs, PreferenceOptions], PreferenceLoss]] = {
    "dpo": dpo,
    "cdpo": cdpo,
    "ipo": ipo,
    "orpo": orpo,
    "simpo": simpo,
}

PAPER_OPTIONS: dict[str, PreferenceOptions] = {
    "dpo": PreferenceOptions(beta=0.1),  # Rafailov 2023, appendix B
    "cdpo": PreferenceOptions(beta=0.1),  # DPO's
    "ipo": PreferenceOptions(beta=0.1),  # Azar 2023, the smallest of the three it tries
    "orpo": PreferenceOptions(beta=0.1),  # Hong 2024, as for Mistral
    "simpo": PreferenceOptions(beta=2.0, gamma=1.0),  # Meng 2024, as for Llama 3 Base
    "kto": PreferenceOptions(beta=0.1),  # Ethayarajh 2024
}
"""What a loss takes where the configuration says nothing, from its paper."""

REFERENCE_FREE = frozenset({"orpo", "simpo"})
"""Losses that need no reference logprobs."""


def kto(
    logprobs: Float[Tensor, " samples"],
    ref_logprobs: Float[Tensor, " samples"],
    desirable: Bool[Tensor, " samples"],
    kl: Float[Tensor, ""],
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Float[Tensor, " samples"], Float[Tensor, " samples"]]:
    """Losses and implied rewards of answers that are labelled one by one (Ethayarajh 2024, section 4).

    `kl`, in nats a response and without gradient, is the mean log ratio over prompts with answers of other prompts,
    of the whole step, and zero where that is negative.
    """
    log_ratios = logprobs - ref_logprobs
    better = torch.where(desirable, log_ratios - kl, kl - log_ratios)
    weights = torch.where(desirable, desirable_weight, undesirable_weight).to(better.dtype)
    return weights * (1 - torch.sigmoid(beta * better)), (beta * log_ratios).detach()


def _log_ratios(pairs: PairLogprobs) -> tuple[Tensor, Tensor]:
    assert pairs.ref_chosen is not None and pairs.ref_rejected is not None
    return pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected


def _mean_logprobs(pairs: PairLogprobs) -> tuple[Tensor, Tensor]:
    return pairs.chosen / pairs.chosen_lengths, pairs.rejected / pairs.rejected_lengths


def _rewarded(losses: Tensor, beta: float, chosen: Tensor, rejected: Tensor) -> PreferenceLoss:
    return PreferenceLoss(losses, (beta * chosen).detach(), (beta * rejected).detach())


def _log_odds(logprobs: Tensor) -> Tensor:
    """log p / (1 - p); the next smaller number stands for a p of one, whose odds have no logarithm."""
    logprobs = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return logprobs - torch.log(-torch.expm1(logprobs))
