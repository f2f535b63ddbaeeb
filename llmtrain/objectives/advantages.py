"""Scores -> advantages: how much better each token of a response was than expected. Once per rollout, no gradient.

score per response -> reward per token (minus the KL to the reference) -> advantage per token. Responses are end to end,
the samples of a prompt next to each other. With d[t] = reward[t] + gamma * value[t+1] - value[t],

gae[t] = d[t] + gamma * gae_lambda * gae[t+1], where value and gae are zero after the last token
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmtrain.config.rl import AdvantageName
from llmtrain.objectives.policy_losses import per_sample, per_token

Sums = Callable[[list[float]], list[float]]
"""Sums each number over all ranks."""

GROUP_EPSILON = 1e-4  # added to a group's standard deviation, as in TRL's GRPOTrainer
WHITEN_EPSILON = 1e-8  # added to the variance, as in TRL's and Ziegler 2019's whitening


@dataclass(frozen=True)
class Episodes:
    """The responses of a rollout on this rank, from which advantages are computed. Each group is on one rank."""

    rewards: Float[Tensor, " tokens"]  # shaped
    values: Float[Tensor, " tokens"] | None  # of the state before each token; None: no critic
    response_lengths: tuple[int, ...]  # at least one token each
    group_size: int  # samples per prompt
    gamma: float
    gae_lambda: float


class Estimates(NamedTuple):
    """For each token of the episodes."""

    advantages: Float[Tensor, " tokens"]
    returns: Float[Tensor, " tokens"] | None  # the critic's targets; None: no critic


def shaped_rewards(
    scores: Float[Tensor, " samples"], kl: Float[Tensor, " tokens"], kl_coef: float, response_lengths: Sequence[int]
) -> Float[Tensor, " tokens"]:
    """The score on a response's last token, and -kl_coef * kl on each (Ziegler 2019, equation 2; Ouyang 2022)."""
    assert not response_lengths or min(response_lengths) > 0
    rewards = -kl_coef * kl
    rewards[_last_tokens(response_lengths, kl.device)] += scores
    return rewards


def signal_groups(scores: Float[Tensor, " samples"], group_size: int) -> Bool[Tensor, " groups"]:
    """True if the scores of a group differ: others have zero advantages (Yu 2025, section 3.2)."""
    grouped = _grouped(scores, group_size)
    return (grouped != grouped[:, :1]).any(1)


def gae(
    rewards: Float[Tensor, " tokens"],
    values: Float[Tensor, " tokens"],
    response_lengths: Sequence[int],
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Generalised advantages (Schulman 2016, equation 16), and returns, which are advantages + values."""
    next_values = values.roll(-1)
    next_values[_last_tokens(response_lengths, values.device)] = 0.0
    advantages = _discounted_sums(rewards + gamma * next_values - values, response_lengths, gamma * gae_lambda)
    return advantages, advantages + values


def group_mean(scores: Float[Tensor, " samples"], group_size: int, normalise: bool) -> Float[Tensor, " samples"]:
    """The score minus its group's mean (Dr. GRPO: Liu 2025); `normalise`: divided by its std (GRPO: Shao 2024).

    The standard deviation has Bessel's correction.
    """
    if not scores.numel():
        return scores  # torch warns about the standard deviation of nothing
    grouped = _grouped(scores, group_size)
    advantages = grouped - grouped.mean(1, keepdim=True)
    if normalise:
        advantages = advantages / (grouped.std(1, keepdim=True) + GROUP_EPSILON)
    return advantages.flatten().to(scores)


def leave_one_out(scores: Float[Tensor, " samples"], group_size: int) -> Float[Tensor, " samples"]:
    """The score minus the mean of the other scores of its group (RLOO: Ahmadian 2024)."""
    grouped = _grouped(scores, group_size)
    others = (grouped.sum(1, keepdim=True) - grouped) / (group_size - 1)
    return (grouped - others).flatten().to(scores)


def reinforce_plus_plus(
    rewards: Float[Tensor, " tokens"], response_lengths: Sequence[int], gamma: float, sum_over_ranks: Sums
) -> Float[Tensor, " tokens"]:
    """The discounted reward to go, whitened over the tokens of all ranks (Hu 2025). Collective."""
    returns = _discounted_sums(rewards, response_lengths, gamma)
    return whitened(returns, sum_over_ranks(moments(returns)), shift_mean=True)


def moments(values: Float[Tensor, " tokens"]) -> list[float]:
    """Count, sum and sum of squares in float64: they add up over ranks, and `whitened` takes their total."""
    exact = values.detach().cpu().double()
    return [float(exact.numel()), float(exact.sum()), float((exact**2).sum())]


def whitened(values: Float[Tensor, " tokens"], totals: Sequence[float], shift_mean: bool) -> Float[Tensor, " tokens"]:
    """Values scaled to variance 1, and shifted to mean 0 with `shift_mean`; `totals`: `moments` summed over ranks.

    The variance has Bessel's correction, as in TRL's `masked_whiten`. Raises ValueError for fewer than two values.
    """
    count, total, squares = totals
    if count < 2:
        raise ValueError(
            f"whitening needs at least two response tokens, the rollout has {count:.0f}: generate more samples"
        )
    mean = total / count
    variance = max(0.0, (squares - total * mean) / (count - 1))
    scaled = (values - mean) * (variance + WHITEN_EPSILON) ** -0.5
    return scaled if shift_mean else scaled + mean


def _gae(episodes: Episodes, sum_over_ranks: Sums) -> Estimates:
    assert episodes.values is not None
    return Estimates(
        *gae(episodes.rewards, episodes.values, episodes.response_lengths, episodes.gamma, episodes.gae_lambda)
    )


def _group_mean(episodes: Episodes, sum_over_ranks: Sums) -> Estimates:
    return _by_group(episodes, group_mean(_response_rewards(episodes), episodes.group_size, normalise=True))


def _dr_grpo(episodes: Episodes, sum_over_ranks: Sums) -> Estimates:
    return _by_group(episodes, group_mean(_response_rewards(episodes), episodes.group_size, normalise=False))


def _rloo(episodes: Episodes, sum_over_ranks: Sums) -> Estimates:
    return _by_group(episodes, leave_one_out(_response_rewards(episodes), episodes.group_size))


def _reinforce_pp(episodes: Episodes, sum_over_ranks: Sums) -> Estimates:
    lengths = episodes.response_lengths
    return Estimates(reinforce_plus_plus(episodes.rewards, lengths, episodes.gamma, sum_over_ranks), None)


ADVANTAGE_FUNCTIONS: dict[AdvantageName, Callable[[Episodes, Sums], Estimates]] = {
    "gae": _gae,
    "group_mean": _group_mean,
    "dr_grpo": _dr_grpo,
    "rloo": _rloo,
    "reinforce_pp": _reinforce_pp,
}
"""The function of each advantage; `config.rl.ADVANTAGES` has what the configuration knows of it."""


@dataclass
class AdaptiveKl:
    """A KL coefficient that moves the KL per response to `target` (Ziegler 2019, section 2.2).

    One rollout changes it by a fraction of at most 0.2 * num_samples / horizon.
    """

    kl_coef: float
    target: float  # nats per response
    horizon: int  # samples

    def update(self, kl: float, num_samples: int) -> None:
        """Adapt to a rollout: `kl` is its mean, in nats per response, over `num_samples` on all ranks.

        Raises ValueError if one rollout could change the coefficient's sign.
        """
        if num_samples >= 5 * self.horizon:
            raise ValueError(
                f"a KL horizon of {self.horizon} samples is too short for rollouts of {num_samples}: raise it"
            )
        error = min(0.2, max(-0.2, kl / self.target - 1))
        self.kl_coef *= 1 + error * num_samples / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.kl_coef = state["kl_coef"]


def _response_rewards(episodes: Episodes) -> Float[Tensor, " samples"]:
    """The reward of each response: its score, minus the KL if that is in the reward."""
    return per_sample(episodes.rewards, episodes.response_lengths)


def _by_group(episodes: Episodes, advantages: Float[Tensor, " samples"]) -> Estimates:
    return Estimates(per_token(advantages, episodes.response_lengths), None)


def _grouped(scores: Float[Tensor, " samples"], group_size: int) -> Float[Tensor, "groups group"]:
    """In float64, in which the mean of equal scores is that score: rounded, it would be a signal of its own."""
    if group_size < 2:
        raise ValueError(f"this advantage compares the samples of a prompt: {group_size} is too few, use two or more")
    return scores.cpu().double().unflatten(0, (-1, group_size))


def _last_tokens(response_lengths: Sequence[int], device: torch.device) -> Tensor:
    return (torch.tensor(response_lengths, dtype=torch.long).cumsum(0) - 1).to(device)


def _discounted_sums(
    terms: Float[Tensor, " tokens"], response_lengths: Sequence[int], discount: float
) -> Float[Tensor, " tokens"]:
    """sums[t] = terms[t] + discount * sums[t+1] within each response, for all responses at once from their ends."""
    assert sum(response_lengths) == terms.numel()
    lengths, order = torch.tensor(response_lengths, dtype=torch.long).sort(descending=True)
    last = _last_tokens(response_lengths, terms.device)[order.to(terms.device)]  # of the longest response first
    sums = terms.clone()
    for back in range(1, max(response_lengths, default=0)):
        tokens = last[: int((lengths > back).sum())] - back
        sums[tokens] += discount * sums[tokens + 1]
    return sums
