"""Held-out prompts: what responses to them are worth, as the policy draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from llmtrain.eval.intervals import mean_interval, wilson_interval
from llmtrain.protocols import Ranks
from llmtrain.rewards.score import several
from llmtrain.rollout.local.generate import generate
from llmtrain.rollout.local.sampling import Sampling
from llmtrain.rollout.sample import Score
from llmtrain.system.precision import training_precision

EVAL_ROLLOUT = 2**31 - 1  # its noise is no training rollout's, and the same each time


@dataclass(frozen=True)
class HeldOutScore:
    """The mean score of one response to each held-out prompt; calling it evaluates the policy."""

    prompts: Sequence[Any]
    policy: PreTrainedModel
    score: Score
    sampling: Sampling
    ranks: Ranks
    is_stopped: Callable[[], bool]  # on this rank; ranks ask as often as they generate

    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """`eval_score` with its 95 % interval, and `eval_loss`, which is its negative; None if asked to stop.

        Where every score is 0 or 1 the interval is that of a share. `eval_score/NAME` is what each of several rewards
        gives, before its weight.
        """
        mine = range(self.ranks.rank, len(self.prompts), self.ranks.world_size)
        prompts = [self.prompts[index] for index in mine]
        sampling = replace(self.sampling, rollout=EVAL_ROLLOUT)
        precision = training_precision(self.policy, self.ranks.device, self.ranks.dtype)
        with self.ranks.gathered(self.policy), precision:
            responses = generate(self.policy, [prompt.ids for prompt in prompts], list(mine), sampling, self.is_stopped)
        if self.ranks.any(responses is None) or should_stop():
            return None
        assert responses is not None
        given = self.score(prompts, responses, list(mine))
        scores, by_term = given.total, several(given.by_term)
        tokens = sum(len(response.response_ids) for response in responses)
        stopped = sum(response.stopped for response in responses)
        between = sum(score not in (0, 1) for score in scores)
        count, total, squares, num_between, num_tokens, ended, *of_terms = self.ranks.sum_floats(
            [
                len(scores),
                sum(scores),
                sum(score**2 for score in scores),
                between,
                tokens,
                stopped,
                *(sum(values) for values in by_term.values()),
            ]
        )
        mean = total / count
        low, high = mean_interval(mean, squares / count, count) if num_between else wilson_interval(mean, count)
        return {
            "eval_loss": -mean,
            "eval_score": mean,
            "eval_score_low": low,
            "eval_score_high": high,
            "eval_response_tokens": num_tokens / count,
            "eval_stopped": ended / count,
            **{f"eval_score/{name}": term / count for name, term in zip(by_term, of_terms, strict=True)},
        }
