"""PPO as a batch source: prompts -> responses -> scores -> advantages -> minibatches, each of which is one step.

The loop pulls minibatches. When those of a rollout are used up, the next rollout is made with the weights of that
moment. The prompts, the noise of every token and the order of minibatches are pure functions of (seed, rollout), so a
resumed run makes the same rollouts. A checkpoint inside a rollout keeps the remaining experience of every rank.

4 prompts with 2 samples each, in 2 minibatches, where a pack holds 2 episodes, on one rank:

    prompt            0     1     2     3
    episodes          0 1   2 3   4 5   6 7
    packs             0     1     2     3
    minibatch         0     0     1     1
    queue, 2 epochs   [[1, 0], [2, 3], [3, 2], [0, 1]], in an order that the seed gives: 4 steps
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmtrain.batch import Experience, empty_experience
from llmtrain.config.rl import PolicyConfig
from llmtrain.objectives.advantages import AdaptiveKl
from llmtrain.protocols import Report
from llmtrain.rollout.experience import Built, ExperienceBuilder, Roles
from llmtrain.rollout.metrics import explained_variance, rollout_metrics, sample_rows
from llmtrain.rollout.minibatches import assign_minibatches, training_order
from llmtrain.rollout.notices import Notices
from llmtrain.rollout.packing import Episode, group_episodes
from llmtrain.rollout.sample import SampledRollout, Sampler, Samples
from llmtrain.rollout.shaping import RunningScores
from llmtrain.rollout.state import Queue, collect, distribute

MAX_ROLLOUTS = 10  # in a row, of which nothing can be trained

Record = Callable[[int, Sequence[Mapping[str, Any]]], None]
"""Keeps the sample rows of a rollout: (number of the rollout, rows of this rank). Collective."""


class RolloutSource:
    """Minibatches of experience, `num_steps` of them."""

    def __init__(
        self,
        roles: Roles,
        sampler: Sampler,
        policy: PolicyConfig,
        *,
        num_steps: int,
        microbatch_tokens: int,
        record: Record,
        report: Report,
    ) -> None:
        self._roles, self._sampler, self._policy = roles, sampler, policy
        self._ranks, self._rollout = sampler.ranks, sampler.config
        self._builder = ExperienceBuilder(
            roles, policy, sampler.config, sampler.ranks, gives_values=sampler.generator.gives_values
        )
        self._num_steps, self._microbatch_tokens = num_steps, microbatch_tokens
        self._record, self._report = record, report
        self._notices = Notices(policy, sampler.config, report)
        self._kl = AdaptiveKl(policy.kl_coef, policy.kl_target or 1.0, policy.kl_horizon)
        self._running = RunningScores()
        self._step = self._num_rollouts = self._position = 0  # position: of the next rollout's first prompt
        self._packs: list[Experience] = []
        self._queue: Queue = []  # for each step that is left of this rollout, indices into the packs
        self._metrics: dict[str, float] = {}

    def next_step(self) -> list[Experience] | None:
        """The microbatches of the present minibatch; None after the last step, or once the KL exceeds its budget.

        Raises Interrupted if a rollout was asked to stop, and ValueError for a response that cannot be scored.
        """
        if self._step >= self._num_steps:
            return None
        if not self._queue:
            self._roll_out_until_there_is_a_step()
        budget, kl = self._policy.kl_budget, self._metrics["rollout_kl"]
        if budget is not None and kl > budget:
            self._report(f"the KL, {kl:.2f} nats per response, exceeds policy.kl_budget={budget:g}: the run ends here")
            return None
        empty = empty_experience(has_reference=self._roles.reference is not None, has_critic=self._policy.has_critic)
        packs = [self._packs[index] if index >= 0 else empty for index in self._queue[0]]
        return [half for pack in packs for half in pack.split_critic()] if self._roles.split_critic else packs

    def advance(self) -> None:
        self._queue.pop(0)
        self._step += 1

    @property
    def step(self) -> int:
        """The steps that have been taken."""
        return self._step

    @property
    def epoch(self) -> float:
        """The prompts taken so far, the present rollout's included, over all prompts."""
        return self._position / self._sampler.num_prompts

    def metrics(self) -> dict[str, float]:
        """Metrics of the present rollout, over all ranks."""
        return self._metrics

    def state_dict(self) -> dict[str, Any]:
        """What all ranks have in common, and the remaining packs of all ranks. Collective."""
        remaining = collect(self._packs, self._queue, self._ranks.gather_to_main) if self._queue else None
        return {
            "step": self._step,
            "rollouts": self._num_rollouts,
            "position": self._position,
            "scores": dict(vars(self._running)),
            "kl": self._kl.state_dict(),
            "metrics": dict(self._metrics),
            "remaining": remaining,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step, self._num_rollouts = int(state["step"]), int(state["rollouts"])
        self._position, self._running = int(state["position"]), RunningScores(**state["scores"])
        self._kl.load_state_dict(state["kl"])
        self._metrics = dict(state["metrics"])
        self._packs, self._queue = [], []
        if state["remaining"] is not None:
            self._packs, self._queue = distribute(state["remaining"], self._ranks.rank, self._ranks.world_size)

    def _roll_out_until_there_is_a_step(self) -> None:
        """The next rollout with a response to train on. Raises ValueError after MAX_ROLLOUTS without one."""
        for _ in range(MAX_ROLLOUTS):
            self._roll_out()
            if self._queue:
                return
        raise ValueError(
            f"rollout.mask_truncated: every response of {MAX_ROLLOUTS} rollouts was cut at rollout.max_new_tokens="
            f"{self._rollout.max_new_tokens}, so there is nothing to train on: raise it"
        )

    def _roll_out(self) -> None:
        """Make the packs of the next rollout and their order in training. Raises Interrupted, the source unchanged."""
        sampled = self._sampler.sample(self._num_rollouts, self._position, self._running)
        started = time.perf_counter()
        episodes = [_episode(sampled.samples, index) for index in sampled.chosen]
        minibatch_of_prompt = assign_minibatches(sampled.chosen_prompts, self._rollout.minibatches)
        size = self._rollout.samples_per_prompt
        minibatch_of_episode = [minibatch_of_prompt[episode.sample_id // size] for episode in episodes]
        lengths = [episode.num_tokens for episode in episodes]
        episodes_of_pack = group_episodes(lengths, minibatch_of_episode, self._microbatch_tokens)
        with self._ranks.gathered(self._roles.trained):  # ranks have unequally many packs
            scores = sampled.samples.shaped[sampled.chosen]
            built = self._builder.build(episodes, episodes_of_pack, scores, self._kl.kl_coef)
        read_seconds = time.perf_counter() - started

        self._packs = built.packs
        minibatch_of_pack = [minibatch_of_episode[episodes_of_pack[number][0]] for number in built.numbers]
        self._queue = self._order(minibatch_of_pack, max(minibatch_of_prompt.values()) + 1)
        self._metrics = self._measure(sampled, built) | {"rollout_read_seconds": read_seconds}
        self._record(self._num_rollouts, sample_rows(sampled, built.kl))
        if self._policy.kl_target is not None:
            self._kl.update(self._metrics["rollout_kl"], int(self._metrics["rollout_samples"]))
        self._position, self._running = sampled.next_position, sampled.running
        self._num_rollouts += 1

    def _measure(self, sampled: SampledRollout, built: Built) -> dict[str, float]:
        """The metrics of a rollout; warns of what they give reason to. Collective."""
        metrics = rollout_metrics(sampled, built, self._rollout, self._ranks) | {
            "kl_coef": self._kl.kl_coef,
            "rollout_generate_seconds": sampled.samples.generate_seconds,
            "rollout_score_seconds": sampled.samples.score_seconds,
        }
        if self._policy.has_critic:
            metrics["rollout_explained_variance"] = explained_variance(built.packs, self._ranks)
        self._notices.look_at(self._num_rollouts, metrics)
        return metrics

    def _order(self, minibatch_of_pack: Sequence[int], num_minibatches: int) -> Queue:
        """The packs of each step, at least one, as many on every rank. Collective."""
        counts = [float(minibatch_of_pack.count(number)) for number in range(num_minibatches)]
        by_rank = self._ranks.gather_floats(counts)
        most_packs = [int(max(of_ranks)) for of_ranks in zip(*by_rank, strict=True)]
        name = f"{self._sampler.sampling.seed}/{self._num_rollouts}"
        queue = training_order(minibatch_of_pack, most_packs, self._rollout.ppo_epochs, name, self._ranks.rank)
        return [packs for packs in queue if packs]  # a minibatch of which all is masked is no step, on any rank


def _episode(samples: Samples, index: int) -> Episode:
    return Episode(samples.sample_ids[index], tuple(samples.prompts[index].ids), samples.responses[index])
