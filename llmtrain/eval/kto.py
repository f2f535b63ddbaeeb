"""How well a policy trained by KTO separates desirable held-out answers from undesirable ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmtrain.data.loader.plan import DataPlan
from llmtrain.data.packing.answers import collate_answers
from llmtrain.eval.gather import batches_by_source, rows_of_all_ranks
from llmtrain.eval.intervals import wilson_interval
from llmtrain.objectives.kto import KtoObjective, Mismatch, kto_correctness, log_ratios
from llmtrain.protocols import Ranks


@dataclass(frozen=True)
class HeldOutAnswers:
    """The held-out answers of a plan, split among ranks; calling it evaluates a policy."""

    plan: DataPlan
    ranks: Ranks
    objective: KtoObjective
    mismatch: Mismatch

    @torch.no_grad()
    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """`eval_loss`, with the KL over all held-out answers; None if asked to stop.

        `eval_accuracy` is the fraction on the right side of the KL, with its 95 % interval. `eval_desirable_reward` is
        missing if no desirable answers are held out, and so is `eval_undesirable_reward`.
        """
        rows: list[tuple[float, ...]] = []
        for _, batch in batches_by_source(self.plan, self.ranks, collate_answers):
            if should_stop():
                return None
            ratios, others = (
                log_ratios(model(placed).logprobs, placed).double().cpu()
                for placed in (each.to(self.ranks.device) for each in (batch, self.mismatch(batch)))
            )
            if batch.sample_ids:
                columns = (ratios, others, batch.desirable, batch.weights)
                rows += [tuple(map(float, row)) for row in zip(*columns, strict=True)]
        table = torch.from_numpy(rows_of_all_ranks(rows, 4, self.ranks))
        ratios, others, labels, weights = table.unbind(1)
        desirable = labels > 0
        kl = ((weights * others).sum() / weights.sum()).clamp(min=0)
        losses, rewards = self.objective.losses_and_rewards(ratios, desirable, kl)
        accuracy = _mean(kto_correctness(ratios, desirable, kl), weights)
        low, high = wilson_interval(accuracy, float(weights.sum()))
        values = {
            "eval_loss": _mean(losses, weights),
            "eval_accuracy": accuracy,
            "eval_accuracy_low": low,
            "eval_accuracy_high": high,
            "eval_kl": float(kl),
        }
        for name, mask in {"desirable": desirable, "undesirable": ~desirable}.items():
            if mask.any():
                values[f"eval_{name}_reward"] = _mean(rewards[mask], weights[mask])
        return values


def _mean(values: Tensor, weights: Tensor) -> float:
    return float((weights * values).sum() / weights.sum())
