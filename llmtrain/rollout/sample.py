"""Prompts -> samples: responses with their scores, drawn in rounds until enough groups of them train something.

A rollout is one round, unless groups whose samples score alike are left out and others are drawn in their place (Yu
2025, section 3.2). Which prompts a round takes follows from the rounds before it, over all ranks: so all ranks stop
after the same one, and samples do not depend on how many ranks there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.config.rl import RolloutConfig
from llmtrain.objectives.advantages import signal_groups
from llmtrain.protocols import Interrupted, Ranks
from llmtrain.rewards.score import Scores
from llmtrain.rollout.local.generate import Generated, generate
from llmtrain.rollout.local.sampling import Sampling
from llmtrain.rollout.shaping import RunningScores, shaped_scores
from llmtrain.system.precision import training_precision

MAX_ROUNDS = 10  # of a rollout

Score = Callable[[Sequence[Any], Sequence[Generated], Sequence[int]], Scores]
"""(prompts, responses, sample ids) -> the scores, of no response too. Raises ValueError naming the sample at fault."""

PromptAt = Callable[[int], Any]
"""The prompt at a position of the order; its `ids` are what the response goes on from."""


@dataclass(frozen=True)
class Samples:
    """What was drawn on this rank, the samples of a prompt next to each other."""

    prompts: list[Any]
    responses: list[Generated]
    sample_ids: list[int]  # position of the prompt * samples of a prompt + number of the sample
    scores: Float[Tensor, " samples"]  # as the rewards add up to them
    by_term: dict[str, list[float]]  # what each reward of the sum gave, before its weight
    shaped: Float[Tensor, " samples"]
    generate_seconds: float
    score_seconds: float


@dataclass(frozen=True)
class Drawn:
    """The samples of a rollout, those of them that are trained on, and where the next rollout goes on."""

    samples: Samples
    kept: list[int]  # indices of samples, whole groups
    trained: list[int]  # positions of the prompts whose groups these are, of all ranks
    num_rounds: int
    next_position: int  # of the first prompt that no rollout has taken
    running: RunningScores


def draw_samples(
    position: int,
    running: RunningScores,
    sampling: Sampling,
    *,
    policy: PreTrainedModel,
    value_head: nn.Module | None,
    prompt_at: PromptAt,
    score: Score,
    config: RolloutConfig,
    ranks: Ranks,
    should_stop: Callable[[], bool],
) -> Drawn:
    """The samples of a rollout whose first prompt is at `position`. Collective.

    `value_head` reads a value behind each token as it is drawn; None: none does. Raises Interrupted where a rank was
    asked to stop, and ValueError where no group trains anything.
    """

    def draw(first: int, num_prompts: int, running: RunningScores) -> tuple[Samples, RunningScores]:
        """One round."""
        size = config.samples_per_prompt
        mine = range(first + ranks.rank, first + num_prompts, ranks.world_size)
        prompts = [prompt for place in mine for prompt in [prompt_at(place)] * size]
        sample_ids = [place * size + sample for place in mine for sample in range(size)]
        started = time.perf_counter()
        with training_precision(policy, ranks.device, ranks.dtype):
            responses = generate(
                policy,
                [prompt.ids for prompt in prompts],
                sample_ids,
                sampling,
                should_stop,
                value_head=value_head,
            )
        if ranks.any(responses is None):  # each rank stops by itself; all find out here
            raise Interrupted
        assert responses is not None
        generated = time.perf_counter()
        given = score(prompts, responses, sample_ids)
        scores = torch.tensor(given.total, dtype=torch.float32)
        scored = time.perf_counter()
        if config.score_normalise:
            running = running.joined_by(scores, ranks.sum_floats)
        shaped = shaped_scores(scores, responses, config, running)
        seconds = generated - started, scored - generated
        return Samples(prompts, responses, sample_ids, scores, given.by_term, shaped, *seconds), running

    parts: list[Samples] = []
    signals: list[bool] = []  # of the groups of all ranks, by position: whether they train something
    while len(parts) < MAX_ROUNDS and sum(signals) < config.num_prompts:
        num_prompts = num_needed(config.num_prompts, signals)
        part, running = draw(position + len(signals), num_prompts, running)
        parts.append(part)
        signals += _signals(part, num_prompts, config, ranks)
    if not any(signals):
        raise ValueError(
            f"none of {len(signals)} prompts has had samples that differ in score, so none trains anything: raise "
            "rollout.samples_per_prompt, or make the reward finer"
        )
    samples = _joined(parts)
    trained = [position + number for number, signal in enumerate(signals) if signal][: config.num_prompts]
    mine = set(trained)
    kept = [i for i, sample in enumerate(samples.sample_ids) if sample // config.samples_per_prompt in mine]
    return Drawn(samples, kept, trained, len(parts), position + len(signals), running)


def num_needed(num_prompts: int, signals: Sequence[bool]) -> int:
    """Prompts of the next round: so many that the groups still wanting are there, as often as there were so far.

    They are at most `num_prompts`, as many as in the first round.
    """
    found = sum(signals)
    missing = num_prompts - found
    return num_prompts if not found else min(num_prompts, -(-missing * len(signals) // found))


def _signals(samples: Samples, num_prompts: int, config: RolloutConfig, ranks: Ranks) -> list[bool]:
    """Whether each group of a round, of all ranks and by position, trains something. Collective where that is asked."""
    if not config.drop_even_groups:
        return [True] * num_prompts
    mine = signal_groups(samples.shaped, config.samples_per_prompt).tolist()
    padded = mine + [False] * (-(-num_prompts // ranks.world_size) - len(mine))
    by_rank = ranks.gather_floats([float(signal) for signal in padded])
    return [bool(by_rank[number % ranks.world_size][number // ranks.world_size]) for number in range(num_prompts)]


def _joined(parts: Sequence[Samples]) -> Samples:
    return Samples(
        [prompt for part in parts for prompt in part.prompts],
        [response for part in parts for response in part.responses],
        [sample_id for part in parts for sample_id in part.sample_ids],
        torch.cat([part.scores for part in parts]),
        {name: [value for part in parts for value in part.by_term[name]] for name in parts[0].by_term},
        torch.cat([part.shaped for part in parts]),
        sum(part.generate_seconds for part in parts),
        sum(part.score_seconds for part in parts),
    )
