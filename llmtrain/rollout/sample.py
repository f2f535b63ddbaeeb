"""Prompts -> samples: responses with their scores, in rounds until enough prompts have something to train on.

A rollout is one round, except under dynamic sampling (DAPO: Yu 2025, section 3.2): a group, the samples of one prompt,
whose scores are all equal has no advantage to train on, so another prompt takes its place. How many prompts a round
takes follows from the rounds before it on all ranks. So all ranks stop after the same round, and the samples do not
depend on the number of ranks. With `num_prompts` 4:

    round 1   prompts 0 1 2 3   a signal: yes no yes yes   1 is missing, 3 of 4 were usable: take ceil(1 / (3/4)) = 2
    round 2   prompts 4 5       a signal: no yes           trained on: 0, 2, 3, 5; the next rollout begins at 6
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from llmtrain.config.rl import RolloutConfig
from llmtrain.objectives.advantages import signal_groups
from llmtrain.protocols import Interrupted, Ranks, SourceFailed
from llmtrain.rewards.batch import Scores
from llmtrain.rewards.score import RewardFailed
from llmtrain.rollout.engine import Generated, Generator, Sampling
from llmtrain.rollout.shaping import RunningScores, shaped_scores

MAX_ROUNDS = 10  # of a rollout


class Prompt(Protocol):
    """What a response continues."""

    @property
    def ids(self) -> Sequence[int]: ...


PromptAt = Callable[[int], Prompt]
"""The prompt at a position of the sample order."""


class Score(Protocol):
    """Scores responses; an empty list too. Raises ValueError naming the sample at fault."""

    def __call__(self, prompts: Sequence[Any], responses: Sequence[Generated], sample_ids: Sequence[int]) -> Scores: ...


@dataclass(frozen=True)
class Samples:
    """The samples of this rank, those of a prompt next to each other."""

    prompts: list[Any]
    responses: list[Generated]
    sample_ids: list[int]  # position of the prompt * samples_per_prompt + number of the sample
    scores: Float[Tensor, " samples"]  # the weighted sum of the rewards
    by_reward: dict[str, list[float | None]]  # each reward's own scores, before its weight; None: it abstained
    failed: dict[str, int]  # by reward, the samples that have no score because it failed
    extras: list[dict[str, Any]]  # what rewards log of each sample
    metrics: list[tuple[str, float]]  # what rewards log, by name
    shaped: Float[Tensor, " samples"]  # what is trained on
    generate_seconds: float
    score_seconds: float

    @classmethod
    def concat(cls, rounds: Sequence[Samples]) -> Samples:
        """The samples of several rounds; times are summed."""
        return cls(
            prompts=[prompt for part in rounds for prompt in part.prompts],
            responses=[response for part in rounds for response in part.responses],
            sample_ids=[sample_id for part in rounds for sample_id in part.sample_ids],
            scores=torch.cat([part.scores for part in rounds]),
            by_reward={name: [x for part in rounds for x in part.by_reward[name]] for name in rounds[0].by_reward},
            failed={name: sum(part.failed[name] for part in rounds) for name in rounds[0].failed},
            extras=[extra for part in rounds for extra in part.extras],
            metrics=[metric for part in rounds for metric in part.metrics],
            shaped=torch.cat([part.shaped for part in rounds]),
            generate_seconds=sum(part.generate_seconds for part in rounds),
            score_seconds=sum(part.score_seconds for part in rounds),
        )


@dataclass(frozen=True)
class SampledRollout:
    """The samples of a rollout, which of them are trained on, and where the next rollout continues."""

    samples: Samples
    chosen: list[int]  # indices into this rank's samples, whole groups: those that are trained on
    chosen_prompts: list[int]  # positions of the prompts that are trained on, of all ranks
    num_rounds: int
    next_position: int  # of the first prompt that no rollout has taken
    running: RunningScores


@dataclass(frozen=True)
class Sampler:
    """Samples and scores responses; every rank has one, with its own share of the prompts."""

    generator: Generator
    prompt_at: PromptAt
    num_prompts: int  # all that `prompt_at` knows
    score: Score
    sampling: Sampling
    config: RolloutConfig
    ranks: Ranks

    def sample(self, rollout: int, position: int, running: RunningScores) -> SampledRollout:
        """The samples of a rollout whose first prompt is at `position`. Collective.

        Raises Interrupted if any rank was asked to stop, SourceFailed if a reward failed on any, and ValueError if no
        group has anything to train on.
        """
        num_prompts, size = self.config.num_prompts, self.config.samples_per_prompt
        sampling = replace(self.sampling, rollout=rollout)
        rounds: list[Samples] = []
        signals: list[bool] = []  # of the groups of all ranks, by position: whether there is something to train on
        with self.generator.current_weights():
            while len(rounds) < MAX_ROUNDS and sum(signals) < num_prompts:
                num_asked = prompts_needed(num_prompts, signals)
                samples, running = self._round(position + len(signals), num_asked, running, sampling)
                rounds.append(samples)
                signals += self._signals(samples, num_asked)
        if not any(signals):
            raise ValueError(
                f"the samples of each of {len(signals)} prompts all score the same, so there is nothing to train on: "
                "raise rollout.samples_per_prompt, or use a finer reward"
            )
        samples = Samples.concat(rounds)
        chosen_prompts = [position + i for i, signal in enumerate(signals) if signal][:num_prompts]
        wanted = set(chosen_prompts)
        return SampledRollout(
            samples=samples,
            chosen=[i for i, sample_id in enumerate(samples.sample_ids) if sample_id // size in wanted],
            chosen_prompts=chosen_prompts,
            num_rounds=len(rounds),
            next_position=position + len(signals),
            running=running,
        )

    def _round(
        self, first: int, num_prompts: int, running: RunningScores, sampling: Sampling
    ) -> tuple[Samples, RunningScores]:
        """This rank's samples of the prompts [first, first + num_prompts), every world_size-th. Collective."""
        size, ranks = self.config.samples_per_prompt, self.ranks
        positions = range(first + ranks.rank, first + num_prompts, ranks.world_size)
        prompts = [prompt for position in positions for prompt in [self.prompt_at(position)] * size]
        sample_ids = [position * size + number for position in positions for number in range(size)]
        started = time.perf_counter()
        responses = self.generator.generate([prompt.ids for prompt in prompts], sample_ids, sampling)
        if ranks.any(responses is None):  # a rank notices a stop by itself; here all learn of it
            raise Interrupted
        assert responses is not None
        generated = time.perf_counter()
        found = scored_together(partial(self.score, prompts, responses, sample_ids), ranks)
        scores = torch.tensor(found.total, dtype=torch.float32)
        scored = time.perf_counter()
        if self.config.score_normalise:
            running = running.joined_by(scores, ranks.sum_floats)
        samples = Samples(
            prompts=prompts,
            responses=responses,
            sample_ids=sample_ids,
            scores=scores,
            by_reward=found.by_reward,
            failed=found.failed,
            extras=found.logged.by_sample(len(responses)),
            metrics=found.logged.metrics,
            shaped=shaped_scores(scores, responses, self.config, running),
            generate_seconds=generated - started,
            score_seconds=scored - generated,
        )
        return samples, running

    def _signals(self, samples: Samples, num_prompts: int) -> list[bool]:
        """For each prompt of a round, of all ranks: whether its group is trained on. Collective in dynamic sampling.

        Ranks take prompts in turns: of 5 prompts, rank 0 of 2 has 0, 2, 4, and rank 1 has 1, 3 and a False after them.
        """
        if not self.config.dynamic_sampling:
            return [True] * num_prompts
        world_size = self.ranks.world_size
        signals = signal_groups(samples.shaped, self.config.samples_per_prompt).tolist()
        padded = signals + [False] * (-(-num_prompts // world_size) - len(signals))  # equally many on each rank
        by_rank = self.ranks.gather_floats([float(signal) for signal in padded])
        return [bool(by_rank[number % world_size][number // world_size]) for number in range(num_prompts)]


def scored_together(score: Callable[[], Scores], ranks: Ranks) -> Scores:
    """The scores of this rank. If a reward fails on any rank, all stop. Collective; raises SourceFailed."""
    failure: RewardFailed | None = None
    found: Scores | None = None
    try:
        found = score()
    except RewardFailed as error:
        failure = error
    if ranks.any(failure is not None):
        raise SourceFailed(str(failure or "a reward failed on another process")) from failure
    assert found is not None
    return found


def prompts_needed(num_prompts: int, signals: Sequence[bool]) -> int:
    """Prompts of the next round: enough to fill the rollout if as many have a signal as so far; at most `num_prompts`.

    With 6 of 8 prompts found usable and 2 missing, ceil(2 / (6/8)) = 3.
    """
    found = sum(signals)
    missing = num_prompts - found
    return num_prompts if not found else min(num_prompts, -(-missing * len(signals) // found))
