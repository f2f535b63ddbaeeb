"""The score of a response, as its rewards add up to it -> the score that the policy is trained on.

    shaped = clip((score - mean) / deviation - what its length costs)

Mean and deviation are those of all scores so far, over all ranks. What length costs is in the units of that: a penalty
of 1 is one deviation where scores are normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmtrain.config.rl import RolloutConfig
from llmtrain.objectives.advantages import WHITEN_EPSILON, Sums
from llmtrain.rollout.local.generate import Generated


@dataclass(frozen=True)
class RunningScores:
    """Moments of all scores so far, the same on every rank; more scores give another one."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def joined_by(self, scores: Float[Tensor, " samples"], sum_over_ranks: Sums) -> RunningScores:
        """With the scores of all ranks (merged as by Chan et al. 1979). Collective; a rank may have none."""
        distances = scores.double() - self.mean  # small where scores stay where they were
        count, total, squares = sum_over_ranks(
            [float(distances.numel()), float(distances.sum()), float((distances**2).sum())]
        )
        whole = self.count + count
        if not count:
            return self
        return RunningScores(whole, self.mean + total / whole, self.squares + squares - total**2 / whole)

    def normalised(self, scores: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
        """Scores less the mean, in deviations; where all so far are the same, zeros."""
        variance = self.squares / max(1.0, self.count)
        return (scores - self.mean) * (variance + WHITEN_EPSILON) ** -0.5


def shaped_scores(
    scores: Float[Tensor, " samples"], responses: Sequence[Generated], config: RolloutConfig, running: RunningScores
) -> Float[Tensor, " samples"]:
    """Scores normalised, less the penalties of their responses' lengths, clipped: each where the configuration asks."""
    if config.score_normalise:
        scores = running.normalised(scores)
    cut_off = torch.tensor([not response.stopped for response in responses], dtype=torch.bool)
    scores = scores - config.missing_eos_penalty * cut_off
    if config.overlong_buffer_tokens is not None:
        lengths = [len(response.response_ids) for response in responses]
        penalties = overlong_penalty(lengths, config.max_new_tokens, config.overlong_buffer_tokens)
        scores = scores + config.overlong_penalty * penalties
    return scores if config.score_clip is None else scores.clamp(-config.score_clip, config.score_clip)


def overlong_penalty(
    response_lengths: Sequence[int], max_response_tokens: int, buffer_tokens: int
) -> Float[Tensor, " samples"]:
    """What is added to a score for its response's length, from 0 to -1 (Yu 2025, DAPO, equation 13).

    Zero up to `buffer_tokens` before `max_response_tokens`, falling in a straight line to -1 there.
    """
    lengths = torch.tensor(response_lengths, dtype=torch.float32)
    return ((max_response_tokens - buffer_tokens - lengths) / buffer_tokens).clamp(-1.0, 0.0)
