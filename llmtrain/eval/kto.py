"""How well a policy trained by KTO tells desirable held-out answers from the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmtrain.batch import JudgedAnswers
from llmtrain.data.loader.plan import DataPlan
from llmtrain.data.packing.answers import collate_answers
from llmtrain.eval.gather import Gather, batches_by_source, rows_of_all_ranks
from llmtrain.eval.intervals import wilson_interval
from llmtrain.objectives.preference import JudgedPreference, is_right, log_ratios


@dataclass(frozen=True)
class HeldOutAnswers:
    """The held-out answers of a plan, shared among ranks; calling it evaluates a policy."""

    plan: DataPlan
    rank: int
    world_size: int
    device: torch.device
    gather: Gather
    objective: JudgedPreference
    mismatched: Callable[[JudgedAnswers], JudgedAnswers]

    @torch.no_grad()
    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """`eval_loss`, with the KL of all held-out answers; None if asked to stop.

        `eval_accuracy` is the share on the right side of the KL, with a 95 % interval; of a kind of answer that none
        is held out of there is no reward.
        """
        rows: list[tuple[float, ...]] = []
        for _, batch in batches_by_source(self.plan, self.rank, self.world_size, collate_answers):
            if should_stop():
                return None
            ratios, others = (
                log_ratios(model(placed).logprobs, placed).double().cpu()
                for placed in (each.to(self.device) for each in (batch, self.mismatched(batch)))
            )
            if batch.sample_ids:
                columns = (ratios, others, batch.desirable, batch.weights)
                rows += [tuple(map(float, row)) for row in zip(*columns, strict=True)]
        table = torch.from_numpy(rows_of_all_ranks(rows, 4, self.gather))
        ratios, others, labels, weights = table.unbind(1)
        desirable = labels > 0
        kl = ((weights * others).sum() / weights.sum()).clamp(min=0)
        losses, rewards = self.objective.judge(ratios, desirable, kl)
        accuracy = _mean(is_right(ratios, desirable, kl), weights)
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
