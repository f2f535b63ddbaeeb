"""Held-out prompts: the scores of the responses that the policy samples for them, some of which are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast

from llmtrain.protocols import Ranks
from llmtrain.rewards.score import answer_text, logged_rewards
from llmtrain.rollout.engine import Generated, Generator, Sampling
from llmtrain.rollout.sample import Score, scored_together
from llmtrain.rollout.sample_log import as_messages, gather_rows
from llmtrain.statistics.intervals import mean_interval, wilson_interval

EVAL_ROLLOUT = 2**31 - 1  # number of the rollout that evaluations sample as: the same noise each time, never training's


@dataclass(frozen=True)
class HeldOutScore:
    """The mean score of one response to each held-out prompt; calling it evaluates the policy."""

    prompts: Sequence[Any]
    generator: Generator
    score: Score
    sampling: Sampling
    ranks: Ranks
    tokenizer: PreTrainedTokenizerFast
    num_samples: int = 0  # responses that are kept: those to the first prompts

    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """`eval_score` with its 95 % interval, and `eval_loss`, its negative; None if asked to stop.

        If every score is 0 or 1, the interval is that of a proportion. `eval_score/NAME` is one of several rewards,
        before its weight. The noise is that of every evaluation, so that samples before and after training compare.
        The generator has the policy, so `model` is not called.
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
        found = scored_together(partial(self.score, prompts, responses, list(mine)), self.ranks)
        by_reward = logged_rewards(found.by_reward)
        sums = _sums(found.total, by_reward, responses)
        totals = dict(zip(sums, self.ranks.sum_floats(list(sums.values())), strict=True))
        count, mean = totals["count"], totals["score"] / totals["count"]
        is_proportion = not totals["not_0_or_1"]
        low, high = (
            wilson_interval(mean, count) if is_proportion else mean_interval(mean, totals["square"] / count, count)
        )
        rows = [
            {
                "index": index,
                "prompt": as_messages(prompt.messages),
                "response": answer_text(prompt.ids, response, self.tokenizer),
                "stopped": response.stopped,
                "score": round(score, 6),
            }
            for index, prompt, response, score in zip(mine, prompts, responses, found.total, strict=True)
            if index < self.num_samples
        ]
        return {
            "samples": gather_rows(rows, self.ranks, by="index"),
            "summary": (
                f"score {mean:.4g} ({low:.4g} to {high:.4g}), {totals['tokens'] / count:.0f} tokens per response, "
                f"{totals['terminated'] / count:.0%} end by themselves"
            ),
            "eval_loss": -mean,
            "eval_score": mean,
            "eval_score_low": low,
            "eval_score_high": high,
            "eval_response_tokens": totals["tokens"] / count,
            "eval_terminated_ratio": totals["terminated"] / count,
            **{
                f"eval_score/{name}": totals[f"eval_score/{name}"] / max(1.0, totals[f"valid/{name}"])
                for name in by_reward
            },
        }


def _sums(
    scores: Sequence[float], by_reward: Mapping[str, Sequence[float | None]], responses: Sequence[Generated]
) -> dict[str, float]:
    """What this rank adds to the means over all ranks."""
    sums = {
        "count": float(len(scores)),
        "score": sum(scores),
        "square": sum(score**2 for score in scores),
        "not_0_or_1": float(sum(score not in (0, 1) for score in scores)),
        "tokens": float(sum(len(response.response_ids) for response in responses)),
        "terminated": float(sum(response.stopped for response in responses)),
    }
    for name, values in by_reward.items():
        valid = [value for value in values if value is not None]
        sums |= {f"eval_score/{name}": sum(valid), f"valid/{name}": float(len(valid))}
    return sums
