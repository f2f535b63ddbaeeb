"""How well a policy's implied rewards rank held-out pairs, by the same numbers that a reward model is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from llmtrain.data.loader.plan import DataPlan
from llmtrain.data.packing.pairs import collate_pairs
from llmtrain.eval.gather import Gather, batches_by_source, rows_of_all_ranks
from llmtrain.eval.pairs import PairScores, flat_report, report_of
from llmtrain.objectives.preference import PairwisePreference

NUM_SCORES = len(PairScores.__dataclass_fields__)


@dataclass(frozen=True)
class HeldOutPreferences:
    """The held-out pairs of a plan, shared among ranks; calling it evaluates a policy."""

    plan: DataPlan
    rank: int
    world_size: int
    device: torch.device
    gather: Gather
    objective: PairwisePreference

    @torch.no_grad()
    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """`eval.reward.report_of` the implied rewards, with `eval_loss` the objective's; None if asked to stop.

        Besides the mean of both rewards, and `eval_chosen_logprob`, nats a chosen answer: where it falls while the
        accuracy rises, both answers become less likely.
        """
        rows: list[tuple[float, ...]] = []
        for source, batch in batches_by_source(self.plan, self.rank, self.world_size, collate_pairs):
            if should_stop():
                return None
            placed = batch.to(self.device)
            judged = self.objective.judge(model(placed).logprobs, placed)
            if batch.num_pairs:
                losses, chosen, rejected, logprobs = (column.double().cpu() for column in judged)
                lengths = batch.answer_lengths
                columns = (losses, logprobs, chosen, rejected, lengths[::2], lengths[1::2], batch.weights)
                rows += [(*map(float, row), float(source)) for row in zip(*columns, strict=True)]
        losses, logprobs, *scores = rows_of_all_ranks(rows, NUM_SCORES + 2, self.gather).T
        found = PairScores(*scores)
        means = {"loss": losses, "chosen_logprob": logprobs, "chosen_reward": found.chosen}
        means["rejected_reward"] = found.rejected
        values = {f"eval_{name}": float(np.average(value, weights=found.weights)) for name, value in means.items()}
        return flat_report(report_of(found, len(self.plan.eval))) | values
