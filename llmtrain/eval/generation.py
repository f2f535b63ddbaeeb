"""Held-out prompts: the scores of the responses that the policy samples for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from llmtrain.eval.intervals import mean_interval, wilson_interval
from llmtrain.protocols import Ranks
from llmtrain.rewards.score import logged_rewards
from llmtrain.rollout.engine import Generator, Sampling
from llmtrain.rollout.sample import Score

EVAL_ROLLOUT = 2**31 - 1  # number of the rollout that evaluations sample as: the same noise each time, never training's


@dataclass(frozen=True)
class HeldOutScore:
    """The mean score of one response to each held-out prompt; calling it evaluates the policy."""

    prompts: Sequence[Any]
    generator: Generator
    score: Score
    sampling: Sampling
    ranks: Ranks

    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """`eval_score` with its 95 % interval, and `eval_loss`, its negative; None if asked to stop.

        If every score is 0 or 1, the interval is that of a proportion. `eval_score/NAME` is one of several rewards,
        before its weight. The generator has the policy, so `model` is not called.
        """
        mine = range(self.ranks.rank, len(self.prompts), self.ranks.world_size)
        prompts = [self.prompts[index] for index in mine]
        with self.generator.current_weights():
            responses = self.generator.generate(
                [prompt.ids for prompt in prompts], list(mine), replace(self.sampling, rollout=EVAL_ROLLOUT)
            )
        if self.ranks.any(responses is None) or should_stop():
            return None
        assert responses is not None
        found = self.score(prompts, responses, list(mine))
        scores, by_reward = found.total, logged_rewards(found.by_reward)
        sums = {
            "count": float(len(scores)),
            "score": sum(scores),
            "square": sum(score**2 for score in scores),
            "not_0_or_1": float(sum(score not in (0, 1) for score in scores)),
            "tokens": float(sum(len(response.response_ids) for response in responses)),
            "terminated": float(sum(response.stopped for response in responses)),
        } | {f"eval_score/{name}": sum(values) for name, values in by_reward.items()}
        totals = dict(zip(sums, self.ranks.sum_floats(list(sums.values())), strict=True))
        count, mean = totals["count"], totals["score"] / totals["count"]
        is_proportion = not totals["not_0_or_1"]
        low, high = (
            wilson_interval(mean, count) if is_proportion else mean_interval(mean, totals["square"] / count, count)
        )
        return {
            "eval_loss": -mean,
            "eval_score": mean,
            "eval_score_low": low,
            "eval_score_high": high,
            "eval_response_tokens": totals["tokens"] / count,
            "eval_terminated_ratio": totals["terminated"] / count,
            **{name: total / count for name, total in totals.items() if name.startswith("eval_score/")},
        }
