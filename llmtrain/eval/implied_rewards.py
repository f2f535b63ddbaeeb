"""How well a policy's implied rewards rank held-out pairs, by the numbers that a reward model is evaluated by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from llmtrain.data.loader.plan import DataPlan
from llmtrain.data.packing.pairs import collate_pairs
from llmtrain.eval.gather import batches_by_source, rows_of_all_ranks
from llmtrain.eval.pairs import PairScores, accuracy_summary, evaluation, report_of
from llmtrain.eval.rounding import is_rounding
from llmtrain.objectives.policy_losses import per_sample
from llmtrain.objectives.preference import PairwisePreference
from llmtrain.protocols import Ranks

NUM_SCORES = len(PairScores.__dataclass_fields__)


@dataclass(frozen=True)
class HeldOutPreferences:
    """The held-out pairs of a plan, split among ranks; calling it evaluates a policy."""

    plan: DataPlan
    ranks: Ranks
    objective: PairwisePreference

    @torch.no_grad()
    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """The report of `pairs.report_of` on implied rewards, with the objective's `eval_loss`; None if asked to stop.

        A reward that is only rounding is 0: before training all pairs are ties, and the accuracy is one half.
        Also the mean of both rewards, and `eval_chosen_logprob`, nats per chosen answer: if it falls while the accuracy
        rises, both answers become less likely.
        """
        rows: list[tuple[float, ...]] = []
        for source, batch in batches_by_source(self.plan, self.ranks, collate_pairs):
            if should_stop():
                return None
            placed = batch.to(self.ranks.device)
            all_logprobs = model(placed).logprobs
            outcomes = self.objective.losses_and_rewards(all_logprobs, placed)
            if batch.num_pairs:
                losses, chosen, rejected, logprobs = (column.double().cpu() for column in outcomes)
                lengths = batch.answer_lengths
                if placed.ref_logprobs is not None:
                    is_zero = is_rounding(per_sample(all_logprobs, lengths), placed.ref_logprobs, lengths).cpu()
                    chosen, rejected = chosen.masked_fill(is_zero[::2], 0), rejected.masked_fill(is_zero[1::2], 0)
                columns = (losses, logprobs, chosen, rejected, lengths[::2], lengths[1::2], batch.weights)
                rows += [(*map(float, row), float(source)) for row in zip(*columns, strict=True)]
        losses, logprobs, *scores = rows_of_all_ranks(rows, NUM_SCORES + 2, self.ranks).T
        found = PairScores(*scores)
        means = {"loss": losses, "chosen_logprob": logprobs, "chosen_reward": found.chosen}
        means["rejected_reward"] = found.rejected
        values: dict[str, Any] = {
            f"eval_{name}": float(np.average(value, weights=found.weights)) for name, value in means.items()
        }
        values = evaluation(report_of(found, len(self.plan.eval))) | values
        return values | {"summary": accuracy_summary(values)}
