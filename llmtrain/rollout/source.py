"""PPO as a batch source: prompts -> responses -> scores -> advantages -> minibatches, each of which is one step.

The loop pulls; when a rollout's minibatches are used up, the next rollout is made with the weights of that moment.
Which prompts come, the noise of every token and the order of minibatches are pure functions of (seed, rollout), so a
resumed run makes the same rollouts. A checkpoint inside a rollout keeps the experience that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.batch import Experience, PackedTokens, empty_experience
from llmtrain.config_rlhf import PolicyConfig, RolloutConfig
from llmtrain.objective import Interrupted
from llmtrain.objectives.policy_losses import kl_estimate, per_sample
from llmtrain.rollout.advantage import (
    ADVANTAGES,
    AdaptiveKl,
    Episodes,
    moments,
    shaped_rewards,
    signal_groups,
    whitened,
)
from llmtrain.rollout.experience import Episode, as_experience, group_episodes, pack_episodes
from llmtrain.rollout.generate import Generated, generate
from llmtrain.rollout.sampling import Sampling

MAX_TRIES = 10  # rollouts in a row that may train nothing


class Prompt(Protocol):
    """What a rollout asks of a prompt."""

    @property
    def ids(self) -> tuple[int, ...]: ...


Score = Callable[[Sequence[Any], Sequence[Generated], Sequence[int]], list[float]]
"""(prompts, responses, sample ids) -> the score of each. Raises ValueError naming the sample that cannot be scored."""

PromptAt = Callable[[int], Any]
"""The prompt at a position of the order."""


class Ranks(Protocol):
    """The collectives that a rollout needs, as the runtime has them."""

    rank: int
    world_size: int
    device: torch.device

    def sum_floats(self, values: Sequence[float]) -> list[float]: ...
    def gather_floats(self, values: Sequence[float]) -> list[list[float]]: ...
    def any(self, flag: bool) -> bool: ...


@dataclass(frozen=True)
class Roles:
    """The models of a rollout; their weights are read as they are at that moment."""

    policy: PreTrainedModel  # draws responses
    trained: nn.Module  # the same with its critic: logprobs and values in the shape of training
    reference: nn.Module | None  # None: no KL


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
    ) -> None:
        self._roles, self._prompt_at, self._score = roles, prompt_at, score
        self._policy, self._rollout, self._sampling = policy, rollout, sampling
        self._num_steps, self._capacity = num_steps, microbatch_tokens
        self._ranks, self._should_stop, self._record, self._say = ranks, should_stop, record, say
        self._has_critic = policy.advantage == "gae"
        self._kl = AdaptiveKl(policy.kl_coef, policy.kl_target or 1.0, policy.kl_horizon)
        self._step = self._rollouts = 0
        self._packs: list[Experience] = []
        self._queue: list[list[int]] = []  # packs of each minibatch to come; -1: an empty one
        self._metrics: dict[str, float] = {}

    def next_step(self) -> list[Experience] | None:
        """The microbatches of the next minibatch; None after the last, or where the KL is over its budget.

        Raises Interrupted where a rollout was asked to stop, and ValueError for a response that cannot be scored.
        """
        if self._step >= self._num_steps:
            return None
        tries = 0
        while not self._queue:
            if tries == MAX_TRIES:
                raise ValueError(
                    f"in {MAX_TRIES} rollouts no prompt has had samples that differ in score, so none trains anything: "
                    "raise rollout.num_prompts or samples_per_prompt, or make the reward finer"
                )
            self._roll_out()
            tries += 1
        budget, kl = self._policy.kl_budget, self._metrics["rollout_kl"]
        if budget is not None and kl > budget:
            self._say(f"the KL of a response, {kl:.2f} nats, is over policy.kl_budget={budget:g}: the run ends here")
            return None
        self._step += 1
        nothing = empty_experience(has_reference=self._roles.reference is not None, has_critic=self._has_critic)
        return [self._packs[index] if index >= 0 else nothing for index in self._queue.pop(0)]

    def metrics(self) -> dict[str, float]:
        """What the rollout at hand was like, over all ranks."""
        return self._metrics

    def skip_last(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Rollouts are not gone back over: a bad minibatch is skipped where it stands."""
        raise AssertionError("a spike rolls back on stored data only; the configuration refuses it here")

    def state_dict(self) -> dict[str, Any]:
        left = sorted({index for step in self._queue for index in step if index >= 0})
        return {
            "step": self._step,
            "rollouts": self._rollouts,
            "kl": self._kl.state_dict(),
            "metrics": dict(self._metrics),
            "queue": [list(step) for step in self._queue],
            "num_packs": len(self._packs),
            "packs": {str(index): dict(vars(self._packs[index])) for index in left},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step, self._rollouts = int(state["step"]), int(state["rollouts"])
        self._kl.load_state_dict(state["kl"])
        self._metrics = dict(state["metrics"])
        self._queue = [[int(index) for index in step] for step in state["queue"]]
        if self._ranks.world_size > 1 and self._queue:
            # Only the main process's experience is saved: what is left of the rollout is left out, on every rank.
            self._say(f"the rest of rollout {self._rollouts - 1} is not trained on: a new one is made")
            self._queue, self._packs = [], []
            return
        packs = {int(index): _experience(fields) for index, fields in state["packs"].items()}
        some = next(iter(packs.values()), None)
        self._packs = [packs.get(index, some) for index in range(int(state["num_packs"]))] if some else []

    def _roll_out(self) -> None:
        """Make the next rollout's packs and the order in which they are trained on. Raises Interrupted."""
        prompts, sample_ids = self._asked()
        sampling = replace(self._sampling, rollout=self._rollouts)
        responses = generate(self._roles.policy, [p.ids for p in prompts], sample_ids, sampling, self._should_stop)
        if self._ranks.any(responses is None):  # each rank stops by itself; all find out here
            raise Interrupted
        assert responses is not None
        scores = self._scores(prompts, responses, sample_ids)
        episodes = [
            Episode(sample_id, tuple(prompt.ids), tuple(response.response_ids), response.stopped)
            for sample_id, prompt, response in zip(sample_ids, prompts, responses, strict=True)
        ]
        size = self._rollout.samples_per_prompt
        kept = list(range(len(episodes)))
        if self._rollout.drop_even_groups:
            kept = [index for index in kept if bool(signal_groups(scores, size)[index // size])]
        self._packs, kl = self._experience([episodes[index] for index in kept], scores[kept])
        self._note(episodes, scores, kl)
        distances: list[float | None] = [None] * len(episodes)
        for index, distance in zip(kept, kl.tolist(), strict=True):
            distances[index] = distance
        self._record(self._rollouts, _samples(prompts, responses, episodes, scores, distances))
        self._queue = self._order()
        self._rollouts += 1

    def _asked(self) -> tuple[list[Any], list[int]]:
        """This rank's prompts of the rollout, each as often as it is sampled, and the samples' numbers."""
        size = self._rollout.samples_per_prompt
        first = self._rollouts * self._rollout.num_prompts
        positions = range(first + self._ranks.rank, first + self._rollout.num_prompts, self._ranks.world_size)
        prompts = [prompt for position in positions for prompt in [self._prompt_at(position)] * size]
        return prompts, [position * size + sample for position in positions for sample in range(size)]

    def _scores(self, prompts: Sequence[Any], responses: Sequence[Generated], sample_ids: Sequence[int]) -> Tensor:
        """The score of each response, (samples,), less the penalty of one that was cut off, within its bounds."""
        scores = torch.tensor(self._score(prompts, responses, sample_ids), dtype=torch.float32)
        cut_off = torch.tensor([not response.stopped for response in responses])
        scores -= self._rollout.missing_eos_penalty * cut_off
        clip = self._rollout.score_clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def _experience(self, episodes: Sequence[Episode], scores: Tensor) -> tuple[list[Experience], Tensor]:
        """The packs of a rollout, and the KL of each sample to the reference, (samples,)."""
        if not episodes:
            self._estimate(scores, scores, None, ())
            return [], scores
        lengths = [episode.num_tokens for episode in episodes]
        grouped = group_episodes(lengths, self._capacity, self._rollout.samples_per_prompt)
        packs = [pack_episodes([episodes[index] for index in indices]) for indices in grouped]
        said = [self._read(pack) for pack in packs]
        old_logprobs = torch.cat([logprobs for logprobs, _, _ in said])
        values = torch.cat([value for _, value, _ in said if value is not None]) if self._has_critic else None
        ref_logprobs = None
        if self._roles.reference is not None:
            ref_logprobs = torch.cat([logprobs for _, _, logprobs in said if logprobs is not None])
        response_lengths = tuple(len(episode.response_ids) for episode in episodes)
        kl = torch.zeros_like(old_logprobs)
        if ref_logprobs is not None:
            kl = kl_estimate(old_logprobs, ref_logprobs, self._policy.kl_kind)
        advantages, returns = self._estimate(scores, kl, values, response_lengths)
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
        return made, per_sample(kl, response_lengths)

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

    @torch.no_grad()
    def _read(self, pack: PackedTokens) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logprobs, values and the reference's logprobs of a pack's response tokens, on the CPU."""
        trained, batch = self._roles.trained, pack.to(self._ranks.device)
        was_training = trained.training
        trained.eval()
        said = trained(batch)
        trained.train(was_training)
        reference = None if self._roles.reference is None else self._roles.reference(batch).logprobs.cpu()
        return said.logprobs.cpu(), None if said.values is None else said.values.cpu(), reference

    def _order(self) -> list[list[int]]:
        """The packs of each minibatch, shuffled anew in each pass; as many on every rank, empty ones among them."""
        counts = [int(count) for (count,) in self._ranks.gather_floats([float(len(self._packs))])]
        num_minibatches = min(self._rollout.minibatches, max(counts))
        queue = []
        for epoch in range(self._rollout.epochs if num_minibatches else 0):
            order = self._shuffled(len(self._packs), epoch)
            each = -(-max(counts) // num_minibatches)
            for number in range(num_minibatches):
                chosen = order[number::num_minibatches]
                queue.append(chosen + [-1] * (each - len(chosen)))
        return queue

    def _shuffled(self, count: int, epoch: int) -> list[int]:
        name = f"{self._sampling.seed}/{self._rollouts}/{epoch}/{self._ranks.rank}"
        seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
        permutation: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        return permutation

    def _note(self, episodes: Sequence[Episode], scores: Tensor, kl: Tensor) -> None:
        """Means over all ranks, and the KL coefficient of the next rollout."""
        size = self._rollout.samples_per_prompt
        even = float((~signal_groups(scores, size)).sum()) * size if size > 1 else 0.0
        lengths = float(sum(len(episode.response_ids) for episode in episodes))
        stopped = float(sum(episode.stopped for episode in episodes))
        count, score, square, measured, total_kl, tokens, ended, flat = self._ranks.sum_floats(
            [
                len(episodes),
                float(scores.sum()),
                float((scores**2).sum()),
                len(kl),
                float(kl.sum()),
                lengths,
                stopped,
                even,
            ]
        )
        mean, mean_kl = score / count, total_kl / max(1.0, measured)
        self._metrics = {
            "rollout_score": mean,
            "rollout_score_std": max(0.0, square / count - mean**2) ** 0.5,
            "rollout_kl": mean_kl,
            "rollout_response_tokens": tokens / count,
            "rollout_stopped": ended / count,
            "kl_coef": self._kl.kl_coef,
        }
        if size > 1:
            self._metrics["rollout_even_groups"] = flat / count
        if ended == 0 and self._rollouts == 0:
            self._say("warning: no response of the first rollout ended by itself: raise rollout.max_new_tokens")
        if self._policy.kl_target is not None:
            self._kl.update(mean_kl, int(count))


def _samples(
    prompts: Sequence[Any],
    responses: Sequence[Generated],
    episodes: Sequence[Episode],
    scores: Tensor,
    kl: Sequence[float | None],
) -> list[dict[str, Any]]:
    return [
        {
            "sample": episode.sample_id,
            "prompt": prompt,
            "response": response,
            "score": round(float(score), 6),
            "kl": None if distance is None else round(distance, 6),
            "stopped": episode.stopped,
        }
        for episode, prompt, response, score, distance in zip(episodes, prompts, responses, scores, kl, strict=True)
    ]


def _experience(fields: Mapping[str, Any]) -> Experience:
    tuples = ("segment_lengths", "response_lengths", "sample_ids")
    restored: dict[str, Any] = {name: tuple(value) if name in tuples else value for name, value in fields.items()}
    return Experience(**restored)
