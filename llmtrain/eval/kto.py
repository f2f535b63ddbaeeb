"""How well a policy trained by KTO separates desirable held-out answers from undesirable ones.

A pair's margin does not depend on the KL; here each answer is compared with it: its implied reward is above beta * KL
or not. That is the threshold of the confusion matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmtrain.batch import LabelledAnswers
from llmtrain.data.loader.plan import DataPlan
from llmtrain.data.packing.answers import collate_answers
from llmtrain.eval.gather import batches_by_source, rows_of_all_ranks
from llmtrain.eval.pairs import accuracy_summary
from llmtrain.eval.rounding import is_rounding
from llmtrain.objectives.kto import KtoObjective, Mismatch, kto_correctness, log_ratios
from llmtrain.objectives.policy_losses import per_sample
from llmtrain.protocols import Array, Ranks
from llmtrain.statistics.intervals import wilson_interval
from llmtrain.statistics.labelled import (
    LabelledScores,
    area_under_curve,
    confusion,
    length_correlation,
    roc,
    score_histogram,
    spread_out,
)

EXAMPLES = 400  # answers whose rewards and lengths are kept, for a picture of the reward against the length


@dataclass(frozen=True)
class AnswerRewards:
    """Implied rewards of held-out answers; every array (answers,) float64."""

    desirable: Array  # 1 or 0
    rewards: Array
    tokens: Array  # lengths of the answers
    weights: Array

    def where(self, mask: Array) -> AnswerRewards:
        """The answers that a mask (answers,) keeps."""
        return AnswerRewards(*(array[mask] for array in vars(self).values()))

    @property
    def labelled(self) -> LabelledScores:
        good, bad = self.where(self.desirable > 0), self.where(self.desirable == 0)
        return LabelledScores(good.rewards, bad.rewards, good.weights, bad.weights)


@dataclass(frozen=True)
class HeldOutAnswers:
    """The held-out answers of a plan, split among ranks; calling it evaluates a policy."""

    plan: DataPlan
    ranks: Ranks
    objective: KtoObjective
    mismatch: Mismatch

    @torch.no_grad()
    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """`eval_loss`, with the KL over all held-out answers, and the report; None if asked to stop.

        `eval_accuracy` is the fraction on the right side of the KL, with its 95 % interval. `eval_desirable_reward` is
        missing if no desirable answers are held out, and so is `eval_undesirable_reward`.
        """
        rows: list[tuple[float, ...]] = []
        for _, batch in batches_by_source(self.plan, self.ranks, collate_answers):
            if should_stop():
                return None
            ratios, others = (
                _log_ratios(model(placed).logprobs, placed).double().cpu()
                for placed in (each.to(self.ranks.device) for each in (batch, self.mismatch(batch)))
            )
            if batch.sample_ids:
                columns = (ratios, others, batch.desirable, batch.answer_lengths, batch.weights)
                rows += [tuple(map(float, row)) for row in zip(*columns, strict=True)]
        table = torch.from_numpy(rows_of_all_ranks(rows, 5, self.ranks))
        ratios, others, labels, tokens, weights = table.unbind(1)
        desirable = labels > 0
        kl = ((weights * others).sum() / weights.sum()).clamp(min=0)
        losses, rewards = self.objective.losses_and_rewards(ratios, desirable, kl)
        accuracy = _mean(kto_correctness(ratios, desirable, kl), weights)
        low, high = wilson_interval(accuracy, float(weights.sum()))
        values: dict[str, Any] = {
            "eval_loss": _mean(losses, weights),
            "eval_accuracy": accuracy,
            "eval_accuracy_low": low,
            "eval_accuracy_high": high,
            "eval_kl": float(kl),
        }
        for name, mask in {"desirable": desirable, "undesirable": ~desirable}.items():
            if mask.any():
                values[f"eval_{name}_reward"] = _mean(rewards[mask], weights[mask])
        found = AnswerRewards(*(column.numpy() for column in (labels, rewards, tokens, weights)))
        report = report_of(found, self.objective.beta * float(kl))
        return values | {"summary": accuracy_summary(values), "eval_auc": report["auc"], "report": report}


def report_of(found: AnswerRewards, threshold: float) -> dict[str, Any]:
    """What `evaluations/` keeps: how the rewards of both labels are spread, and how well a threshold separates them."""
    finite = found.where(np.isfinite(found.rewards))
    labelled = finite.labelled
    columns = {name: vars(finite)[name] for name in ("desirable", "rewards", "tokens")}
    return {
        "answers": float(found.weights.sum()),
        "answers_not_finite": float(found.weights.sum() - finite.weights.sum()),
        "auc": area_under_curve(labelled),
        "roc": roc(labelled),
        "confusion": confusion(labelled, threshold),
        "reward_histogram": score_histogram(labelled),
        "length": length_correlation(finite.rewards, finite.tokens, finite.weights),
        "examples": spread_out(columns, EXAMPLES),
    }


def _log_ratios(logprobs: Tensor, batch: LabelledAnswers) -> Tensor:
    """(labels,) -> (answers,): those of the objective, 0 where they are only rounding."""
    assert batch.ref_logprobs is not None
    lengths = batch.answer_lengths
    is_zero = is_rounding(per_sample(logprobs, lengths), batch.ref_logprobs, lengths)
    return log_ratios(logprobs, batch).masked_fill(is_zero, 0)


def _mean(values: Tensor, weights: Tensor) -> float:
    return float((weights * values).sum() / weights.sum())
