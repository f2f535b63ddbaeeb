"""Held-out prompts: what responses to them are worth, as the policy draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from llmtrain.rollout.generate import generate
from llmtrain.rollout.sampling import Sampling
from llmtrain.rollout.source import Ranks, Score

EVAL_ROLLOUT = 2**31 - 1  # its noise is no training rollout's, and the same each time
NORMAL_95 = 1.96


@dataclass(frozen=True)
class HeldOutScore:
    """The mean score of one response to each held-out prompt; calling it evaluates the policy."""

    prompts: Sequence[Any]
    policy: PreTrainedModel
    score: Score
    sampling: Sampling
    ranks: Ranks

    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """`eval_score` with its 95 % interval, and `eval_loss`, which is its negative; None if asked to stop."""
        mine = range(self.ranks.rank, len(self.prompts), self.ranks.world_size)
        prompts = [self.prompts[index] for index in mine]
        sampling = replace(self.sampling, rollout=EVAL_ROLLOUT)
        responses = generate(self.policy, [prompt.ids for prompt in prompts], list(mine), sampling, lambda: False)
        if should_stop():
            return None
        assert responses is not None
        scores = self.score(prompts, responses, list(mine))
        tokens = sum(len(response.response_ids) for response in responses)
        stopped = sum(response.stopped for response in responses)
        count, total, squares, num_tokens, ended = self.ranks.sum_floats(
            [len(scores), sum(scores), sum(score**2 for score in scores), tokens, stopped]
        )
        mean = total / count
        half = NORMAL_95 * (max(0.0, squares / count - mean**2) / count) ** 0.5
        return {
            "eval_loss": -mean,
            "eval_score": mean,
            "eval_score_low": mean - half,
            "eval_score_high": mean + half,
            "eval_response_tokens": num_tokens / count,
            "eval_stopped": ended / count,
        }
