"""The score of a response -> the shaped score that the policy is trained on.

    shaped = clip((score - running mean) / running std - penalties of the response's length)

Mean and standard deviation are over all scores so far, on all ranks. Penalties come after normalisation: a penalty of
1 is then one standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmtrain.config.rl import RolloutConfig
from llmtrain.objectives.advantages import WHITEN_EPSILON, Sums
from llmtrain.rollout.engine import Generated


@dataclass(frozen=True)
class RunningScores:
    """Moments of all scores so far, the same on every rank; a value that is replaced, not changed."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def joined_by(self, scores: Float[Tensor, " samples"], sum_over_ranks: Sums) -> RunningScores:
        """The moments with the scores of all ranks added (Chan et al. 1979). Collective; a rank may have no scores."""
        distances = scores.double() - self.mean  # small numbers, whose squares keep their precision
        count, total, squares = sum_over_ranks(
            [float(distances.numel()), float(distances.sum()), float((distances**2).sum())]
        )
        whole = self.count + count
        if not count:
            return self
        return RunningScores(whole, self.mean + total / whole, self.squares + squares - total**2 / whole)

    def normalised(self, scores: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
        """(scores - mean) / std; zeros if all scores so far are equal."""
        variance = self.squares / max(1.0, self.count)
        return (scores - self.mean) * (variance + WHITEN_EPSILON) ** -0.5


def shaped_scores(
    scores: Float[Tensor, " samples"], responses: Sequence[Generated], config: RolloutConfig, running: RunningScores
) -> Float[Tensor, " samples"]:
    """Scores, normalised, minus the penalties of their responses' lengths, clipped: each if it is configured."""
    if config.score_normalise:
        scores = running.normalised(scores)
    is_truncated = torch.tensor([not response.stopped for response in responses], dtype=torch.bool)
    scores = scores - config.missing_eos_penalty * is_truncated
    if config.overlong_buffer_tokens is not None:
        lengths = [len(response.response_ids) for response in responses]
        penalties = overlong_penalty(lengths, config.max_new_tokens, config.overlong_buffer_tokens)
        scores = scores + config.overlong_penalty * penalties
    return scores if config.score_clip is None else scores.clamp(-config.score_clip, config.score_clip)


def overlong_penalty(
    response_lengths: Sequence[int], max_response_tokens: int, buffer_tokens: int
) -> Float[Tensor, " samples"]:
    """What is added to a score for its response's length, 0 to -1 (DAPO: Yu 2025, equation 13).

    0 up to `max_response_tokens - buffer_tokens`, then falling linearly to -1 at `max_response_tokens`.
    """
    lengths = torch.tensor(response_lengths, dtype=torch.float32)
    return ((max_response_tokens - buffer_tokens - lengths) / buffer_tokens).clamp(-1.0, 0.0)
