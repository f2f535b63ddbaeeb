"""Episodes with their scores -> packs of experience: old and reference logprobs, values, rewards, advantages, returns.

score - kl_coef * KL -> reward per token -> advantage per token -> whitened
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llmtrain.batch import Experience, PackedTokens
from llmtrain.config.rl import ADVANTAGES, PolicyConfig, RolloutConfig
from llmtrain.models.wrappers.actor_critic import ActorCritic, PolicyOutputs
from llmtrain.objectives.advantages import (
    ADVANTAGE_FUNCTIONS,
    Episodes,
    Estimates,
    moments,
    shaped_rewards,
    whitened,
)
from llmtrain.objectives.policy_losses import kl_estimate, per_sample
from llmtrain.protocols import Ranks
from llmtrain.rollout.packing import Episode, ResponseFields, as_experience, pack_episodes
from llmtrain.system.precision import reading

MIN_TOKENS = 2  # whitening compares


@dataclass(frozen=True)
class Roles:
    """The models that read a rollout, with the weights that they have at that moment."""

    trained: ActorCritic  # policy and critic
    reference: ActorCritic | None  # None: no KL
    split_critic: bool = False  # policy and critic get a microbatch each, so that they share no memory


class OldOutputs(NamedTuple):
    """The outputs of policy and critic before the update, per response token."""

    logprobs: Float[Tensor, " tokens"]  # the denominator of the ratio
    values: Float[Tensor, " tokens"] | None  # None: no critic
    differences: Float[Tensor, " compared"]  # training's logprobs minus the sampler's, in nats


class Built(NamedTuple):
    """The experience of this rank."""

    packs: list[Experience]
    numbers: list[int]  # of each pack in `episodes_of_pack`: one of which every episode is masked is not there
    kl: Float[Tensor, " samples"]  # nats per response, by k1, which has no bias, whatever estimator shapes rewards
    differences: Float[Tensor, " compared"]


@dataclass(frozen=True)
class ExperienceBuilder:
    """Reads the episodes of a rollout with all roles and computes what training needs, with gathered weights."""

    roles: Roles
    policy: PolicyConfig
    rollout: RolloutConfig
    ranks: Ranks
    gives_values: bool  # the generator does

    def build(
        self,
        episodes: Sequence[Episode],
        episodes_of_pack: Sequence[Sequence[int]],
        scores: Float[Tensor, " samples"],
        kl_coef: float,
    ) -> Built:
        """The packs of this rank, which may have no episode. Collective.

        `episodes_of_pack`: indices into `episodes`, each once and in order, since tensors of the whole rollout are
        split by pack and by episode alike. With `rollout.mask_truncated` the packs are without responses that no stop
        token ended: they are in no average of the loss (DAPO: Yu 2025, section 3.4).
        """
        packs = [pack_episodes([episodes[index] for index in indices]) for indices in episodes_of_pack]
        lengths = tuple(len(episode.response.response_ids) for episode in episodes)
        old = self._old_outputs(episodes, packs)
        ref_logprobs: Tensor | None = None
        penalty = kl = torch.zeros_like(old.logprobs)  # per token: what rewards lose, and what is logged
        if (reference := self.roles.reference) is not None:
            ref_logprobs = _concat([self._read(reference, pack).logprobs for pack in packs])
            penalty = kl_estimate(old.logprobs, ref_logprobs, self.policy.kl_estimator)
            kl = kl_estimate(old.logprobs, ref_logprobs, "k1")
        reward_kl_coef = kl_coef if self.policy.kl_placement == "reward" else 0.0
        rewards = shaped_rewards(scores, penalty, reward_kl_coef, lengths)
        if (trained := self._trained(episodes)) is None:
            return Built([], [], per_sample(kl, lengths), old.differences)
        advantages, returns = self._advantages(rewards, old.values, lengths, trained)
        fields = ResponseFields(old.logprobs, ref_logprobs, advantages, old.values, returns).split(lengths)
        numbers, made = [], []
        for number, (pack, indices) in enumerate(zip(packs, episodes_of_pack, strict=True)):
            kept = [index for index in indices if trained[index]]
            if kept:
                of_pack = [episodes[index] for index in kept]
                packed = pack if len(kept) == len(indices) else pack_episodes(of_pack)
                numbers.append(number)
                made.append(as_experience(packed, of_pack, ResponseFields.concat([fields[index] for index in kept])))
        return Built(made, numbers, per_sample(kl, lengths), old.differences)

    def _old_outputs(self, episodes: Sequence[Episode], packs: Sequence[PackedTokens]) -> OldOutputs:
        """Logprobs and values before the update, by `rollout.old_logprobs`."""
        sampled = torch.tensor([logprob for episode in episodes for logprob in episode.response.logprobs])
        trained = self.roles.trained
        if self.rollout.old_logprobs == "recompute":
            outputs = [self._read(trained, pack) for pack in packs]
            logprobs = _concat([each.logprobs for each in outputs])
            values = [each.values for each in outputs if each.values is not None]
            has_critic = trained.value_head is not None
            return OldOutputs(logprobs, _concat(values) if has_critic else None, logprobs - sampled)
        # One episode is read, to log how far training is from the sampler.
        first = _concat([self._read(trained, pack_episodes([episode])).logprobs for episode in episodes[:1]])
        return OldOutputs(sampled, self._sampled_values(episodes, packs), first - sampled[: len(first)])

    def _sampled_values(self, episodes: Sequence[Episode], packs: Sequence[PackedTokens]) -> Tensor | None:
        """The critic's values beside the sampler's logprobs: from the generator if it gives them, else read."""
        trained = self.roles.trained
        if trained.value_head is None:
            return None
        if self.gives_values:
            return torch.tensor([value for episode in episodes for value in episode.response.values])
        return _concat([self._read_values(trained, pack) for pack in packs])

    def _trained(self, episodes: Sequence[Episode]) -> list[bool] | None:
        """Whether each episode is in the loss; None, on all ranks, if almost nothing is. Collective."""
        if not self.rollout.mask_truncated:
            return [True] * len(episodes)
        trained = [episode.response.stopped for episode in episodes]
        num_tokens = sum(len(each.response.response_ids) for each in episodes if each.response.stopped)
        (total,) = self.ranks.sum_floats([float(num_tokens)])
        return trained if total >= MIN_TOKENS else None

    def _advantages(
        self, rewards: Tensor, values: Tensor | None, response_lengths: tuple[int, ...], trained: Sequence[bool]
    ) -> Estimates:
        """Advantages and returns, (tokens,). Collective: a rank without episodes takes part with empty tensors.

        Only responses that are `trained` count, the others' are zero; but a group is compared whole.
        """
        if not all(trained) and not ADVANTAGES[self.policy.advantage].needs_groups:
            lengths = torch.tensor(response_lengths)
            mask = torch.tensor(trained).repeat_interleave(lengths)
            of_trained = tuple(lengths[torch.tensor(trained)].tolist())
            values = None if values is None else values[mask]
            found = self._estimates(rewards[mask], values, of_trained)
            whole = [None if each is None else torch.zeros_like(rewards).masked_scatter(mask, each) for each in found]
            return Estimates(*whole)  # type: ignore[arg-type]
        return self._estimates(rewards, values, response_lengths)

    def _estimates(self, rewards: Tensor, values: Tensor | None, response_lengths: tuple[int, ...]) -> Estimates:
        episodes = Episodes(
            rewards=rewards,
            values=values,
            response_lengths=response_lengths,
            group_size=self.rollout.samples_per_prompt,
            gamma=self.policy.gamma,
            gae_lambda=self.policy.gae_lambda,
        )
        sums = self.ranks.sum_floats
        estimates = ADVANTAGE_FUNCTIONS[self.policy.advantage](episodes, sums)
        if not (self.policy.has_critic and self.policy.whiten):
            return estimates
        return estimates._replace(
            advantages=whitened(estimates.advantages, sums(moments(estimates.advantages)), shift_mean=True)
        )

    def _read(self, module: ActorCritic, pack: PackedTokens) -> PolicyOutputs:
        """A module's outputs for the response tokens of a pack, on the CPU."""
        with reading(module, self.ranks.device, self.ranks.dtype):
            outputs: PolicyOutputs = module(pack.to(self.ranks.device))
        values = None if outputs.values is None else outputs.values.cpu()
        return PolicyOutputs(outputs.logprobs.cpu(), outputs.entropies.cpu(), values)

    def _read_values(self, module: ActorCritic, pack: PackedTokens) -> Tensor:
        """The values alone, on the CPU: of a separate critic without reading the policy."""
        if module.critic is None:
            values = self._read(module, pack).values
            assert values is not None
            return values
        with reading(module, self.ranks.device, self.ranks.dtype):
            return module.values(pack.to(self.ranks.device)).cpu()


def _concat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0)
