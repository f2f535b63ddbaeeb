"""PPO as a batch source: prompts -> responses -> scores -> advantages -> minibatches, each of which is one step.

The loop pulls; when a rollout's minibatches are used up, the next rollout is made with the weights of that moment.
Which prompts come, the noise of every token and the order of minibatches are pure functions of (seed, rollout), so a
resumed run makes the same rollouts. A checkpoint inside a rollout keeps the experience that is left, of every rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmtrain.batch import Experience, PackedTokens, empty_experience
from llmtrain.config.rl import PolicyConfig, RolloutConfig
from llmtrain.models.wrappers.actor_critic import ActorCritic, PolicyOutputs
from llmtrain.objectives.advantages import ADVANTAGES, AdaptiveKl, Episodes, moments, shaped_rewards, whitened
from llmtrain.objectives.policy_losses import kl_estimate, per_sample
from llmtrain.protocols import Ranks
from llmtrain.rollout.local.sampling import Sampling
from llmtrain.rollout.metrics import explained_variance, rollout_metrics, sample_rows
from llmtrain.rollout.minibatches import minibatch_of, training_order
from llmtrain.rollout.packing import Episode, as_experience, group_episodes, pack_episodes
from llmtrain.rollout.sample import PromptAt, Samples, Score, draw_samples
from llmtrain.rollout.shaping import RunningScores
from llmtrain.rollout.state import Queue, collect, hand_out
from llmtrain.system.precision import reading


@dataclass(frozen=True)
class Roles:
    """The models of a rollout; their weights are read as they are at that moment."""

    policy: PreTrainedModel  # draws responses
    trained: ActorCritic  # the same with its critic: logprobs and values in the shape of training
    reference: ActorCritic | None  # None: no KL


Record = Callable[[int, Sequence[Mapping[str, Any]]], None]
"""Keeps the samples of a rollout, by its number."""


class RolloutSource:
    """Minibatches of experience, `num_steps` of them."""

    def __init__(
        self,
        roles: Roles,
        prompt_at: PromptAt,
        score: Score,
        policy: PolicyConfig,
        rollout: RolloutConfig,
        sampling: Sampling,
        *,
        num_steps: int,
        microbatch_tokens: int,
        ranks: Ranks,
        should_stop: Callable[[], bool],
        record: Record,
        say: Callable[[str], None],
        critic_apart: bool = False,
    ) -> None:
        """`critic_apart`: a microbatch comes twice, for the policy and for its critic, which then share no memory."""
        self._critic_apart = critic_apart
        self._roles, self._policy, self._rollout, self._sampling = roles, policy, rollout, sampling
        self._num_steps, self._capacity = num_steps, microbatch_tokens
        self._ranks, self._record, self._say = ranks, record, say
        self._draw = partial(
            draw_samples,
            policy=roles.policy,
            value_head=roles.trained.trunk_head if rollout.behaviour == "generate" else None,
            prompt_at=prompt_at,
            score=score,
            config=rollout,
            ranks=ranks,
            should_stop=should_stop,
        )
        self._has_critic = policy.advantage == "gae"
        self._kl = AdaptiveKl(policy.kl_coef, policy.kl_target or 1.0, policy.kl_horizon)
        self._step = self._rollouts = self._position = 0
        self._running = RunningScores()
        self._packs: list[Experience] = []
        self._queue: Queue = []
        self._metrics: dict[str, float] = {}

    def next_step(self) -> list[Experience] | None:
        """The microbatches of the present minibatch; None after the last, or if the KL is over its budget.

        Raises Interrupted where a rollout was asked to stop, and ValueError for a response that cannot be scored.
        """
        if self._step >= self._num_steps:
            return None
        if not self._queue:
            with self._ranks.gathered(self._roles.trained):  # each rank reads and generates as often as it needs
                self._roll_out()
        budget, kl = self._policy.kl_budget, self._metrics["rollout_kl"]
        if budget is not None and kl > budget:
            self._say(f"the KL of a response, {kl:.2f} nats, is over policy.kl_budget={budget:g}: the run ends here")
            return None
        nothing = empty_experience(has_reference=self._roles.reference is not None, has_critic=self._has_critic)
        packs = [self._packs[index] if index >= 0 else nothing for index in self._queue[0]]
        return [half for pack in packs for half in pack.apart()] if self._critic_apart else packs

    def advance(self) -> None:
        self._queue.pop(0)
        self._step += 1

    def metrics(self) -> dict[str, float]:
        """What the rollout at hand was like, over all ranks."""
        return self._metrics

    def state_dict(self) -> dict[str, Any]:
        """What every rank has in common, and the packs of all ranks that are left of the rollout."""
        left = collect(self._packs, self._queue, self._ranks.gather_to_main) if self._queue else None
        return {
            "step": self._step,
            "rollouts": self._rollouts,
            "position": self._position,
            "scores": dict(vars(self._running)),
            "kl": self._kl.state_dict(),
            "metrics": dict(self._metrics),
            "left": left,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step, self._rollouts = int(state["step"]), int(state["rollouts"])
        self._position, self._running = int(state["position"]), RunningScores(**state["scores"])
        self._kl.load_state_dict(state["kl"])
        self._metrics = dict(state["metrics"])
        self._packs, self._queue = [], []
        if state["left"] is not None:
            self._packs, self._queue = hand_out(state["left"], self._ranks.rank, self._ranks.world_size)

    def _roll_out(self) -> None:
        """Make the next rollout's packs and the order in which they are trained on. Raises Interrupted."""
        drawn = self._draw(self._position, self._running, replace(self._sampling, rollout=self._rollouts))
        started = time.perf_counter()
        samples = drawn.samples
        episodes = [_episode(samples, index) for index in drawn.kept]
        by_group = minibatch_of(drawn.trained, self._rollout.minibatches)
        minibatches = [by_group[episode.sample_id // self._rollout.samples_per_prompt] for episode in episodes]
        grouped = group_episodes([episode.num_tokens for episode in episodes], minibatches, self._capacity)
        self._packs, kl, gaps = self._experience(episodes, grouped, samples.shaped[drawn.kept])
        read = time.perf_counter()
        self._metrics = rollout_metrics(drawn, kl, gaps, self._rollout, self._ranks) | {
            "kl_coef": self._kl.kl_coef,
            "rollout_generate_seconds": samples.generate_seconds,
            "rollout_score_seconds": samples.score_seconds,
            "rollout_read_seconds": read - started,  # the reference, and what was not drawn
        }
        if self._has_critic:
            self._metrics["rollout_explained_variance"] = explained_variance(self._packs, self._ranks)
        if self._metrics["rollout_stopped"] == 0 and self._rollouts == 0:
            self._say("warning: no response of the first rollout ended by itself: raise rollout.max_new_tokens")
        if self._policy.kl_target is not None:
            self._kl.update(self._metrics["rollout_kl"], int(self._metrics["rollout_samples"]))
        self._record(self._rollouts, sample_rows(drawn, kl))
        self._queue = self._order([minibatches[first] for first, *_ in grouped], max(by_group.values()) + 1)
        self._position, self._running = drawn.next_position, drawn.running
        self._rollouts += 1

    def _experience(
        self, episodes: Sequence[Episode], grouped: Sequence[Sequence[int]], scores: Tensor
    ) -> tuple[list[Experience], Tensor, Tensor]:
        """A rollout's packs, of the episodes of `grouped`; the KL of each sample, (samples,); the gaps of `_behaviour`.

        The KL to the reference is by k1, which has no bias, whatever estimate shapes the rewards. Collective.
        """
        if not episodes:
            self._estimate(scores, scores, scores if self._has_critic else None, ())
            return [], scores, scores
        packs = [pack_episodes([episodes[index] for index in indices]) for indices in grouped]
        old_logprobs, values, gaps = self._behaviour(episodes, packs)
        ref_logprobs = None
        if (reference := self._roles.reference) is not None:
            ref_logprobs = torch.cat([self._read(reference, pack).logprobs for pack in packs])
        response_lengths = tuple(len(episode.response_ids) for episode in episodes)
        shaping = measured = torch.zeros_like(old_logprobs)
        if ref_logprobs is not None:
            shaping = kl_estimate(old_logprobs, ref_logprobs, self._policy.kl_kind)
            measured = kl_estimate(old_logprobs, ref_logprobs, "k1")
        advantages, returns = self._estimate(scores, shaping, values, response_lengths)
        columns = {
            "old_logprobs": old_logprobs,
            "ref_logprobs": ref_logprobs,
            "advantages": advantages,
            "old_values": values,
            "returns": returns,
        }
        sizes = [pack.num_trained for pack in packs]
        parts: dict[str, Sequence[Any]] = {
            name: [None] * len(packs) if column is None else column.split(sizes) for name, column in columns.items()
        }
        made = [
            as_experience(
                pack, [episodes[index] for index in indices], **{name: part[number] for name, part in parts.items()}
            )
            for number, (pack, indices) in enumerate(zip(packs, grouped, strict=True))
        ]
        return made, per_sample(measured, response_lengths), gaps

    def _behaviour(
        self, episodes: Sequence[Episode], packs: Sequence[PackedTokens]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logprobs that ratios start from and the critic's values, (tokens,), and the gaps between generation and read.

        What comes from generation is compared on the rollout's first episode only.
        """
        trained = self._roles.trained
        drawn = torch.tensor([logprob for episode in episodes for logprob in episode.logprobs])
        takes_drawn = self._rollout.behaviour == "generate"
        to_read = [pack_episodes(episodes[:1])] if takes_drawn else packs
        said = [self._read(trained, pack) for pack in to_read]
        read = torch.cat([outputs.logprobs for outputs in said])
        gaps = read - drawn[: len(read)]
        values: Tensor | None = None
        if not takes_drawn:
            read_values = [outputs.values for outputs in said if outputs.values is not None]
            values = torch.cat(read_values) if read_values else None
        elif trained.trunk_head is not None:
            values = torch.tensor([value for episode in episodes for value in episode.values])
        elif trained.value_head is not None:
            values = torch.cat([self._read_values(trained, pack) for pack in packs])
        return drawn if takes_drawn else read, values, gaps

    def _estimate(
        self, scores: Tensor, kl: Tensor, values: Tensor | None, response_lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """Advantages and returns of response tokens. Collective."""
        coef = self._kl.kl_coef if self._policy.kl_in == "reward" else 0.0
        estimates = ADVANTAGES[self._policy.advantage](
            Episodes(
                rewards=shaped_rewards(scores, kl, coef, response_lengths),
                values=values,
                response_lengths=response_lengths,
                group_size=self._rollout.samples_per_prompt,
                gamma=self._policy.gamma,
                gae_lambda=self._policy.gae_lambda,
            ),
            self._ranks.sum_floats,
        )
        advantages = estimates.advantages
        if self._has_critic and self._policy.whiten:
            advantages = whitened(advantages, self._ranks.sum_floats(moments(advantages)), shift_mean=True)
        return advantages, estimates.returns

    def _read(self, module: ActorCritic, pack: PackedTokens) -> PolicyOutputs:
        """What a module says of a pack's response tokens, on the CPU."""
        with reading(module, self._ranks.device, self._ranks.dtype):
            said: PolicyOutputs = module(pack.to(self._ranks.device))
        values = None if said.values is None else said.values.cpu()
        return PolicyOutputs(said.logprobs.cpu(), said.entropies.cpu(), values)

    def _read_values(self, module: ActorCritic, pack: PackedTokens) -> Tensor:
        """The values alone, where the critic has a trunk of its own."""
        with reading(module, self._ranks.device, self._ranks.dtype):
            return module.values(pack.to(self._ranks.device)).cpu()

    def _order(self, of_packs: Sequence[int], num_minibatches: int) -> Queue:
        """The packs of each step, as many on every rank; `of_packs`: the minibatch of each. Collective."""
        counts = self._ranks.gather_floats([float(of_packs.count(number)) for number in range(num_minibatches)])
        most_packs = [int(max(of_ranks)) for of_ranks in zip(*counts, strict=True)]
        name = f"{self._sampling.seed}/{self._rollouts}"
        return training_order(of_packs, most_packs, self._rollout.epochs, name, self._ranks.rank)


def _episode(samples: Samples, index: int) -> Episode:
    response = samples.responses[index]
    return Episode(
        samples.sample_ids[index],
        tuple(samples.prompts[index].ids),
        tuple(response.response_ids),
        response.stopped,
        tuple(response.logprobs),
        response.kept,
        tuple(response.values),
    )
