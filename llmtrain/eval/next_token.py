"""Held-out loss over stored packs, in nats per token, and bits per byte, which no tokenizer can flatter.

bits_per_byte = summed loss / ln 2 / bytes of the documents
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from llmtrain.data.loader.batches import collate, rank_batches
from llmtrain.data.loader.plan import DataPlan
from llmtrain.protocols import Ranks


@dataclass(frozen=True)
class HeldOut:
    """The held-out packs of a plan, split among ranks; calling it evaluates a model."""

    plan: DataPlan
    ranks: Ranks

    @torch.no_grad()
    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """`eval_loss` (nats per trained token), `eval_bits_per_byte` if all are trained; None if asked to stop.

        Bytes are those of the evaluated documents, in proportion to tokens if only some are evaluated. Without BOS the
        first token of each document is not predicted: its bytes count, its bits do not.
        """
        total_loss = torch.zeros((), dtype=torch.float64)
        num_predicted = num_tokens = 0
        plan, ranks = self.plan, self.ranks
        packs = range(plan.num_eval_packs)
        for batch in rank_batches(
            packs, plan.eval_pack, plan.packs_per_microbatch, ranks.rank, ranks.world_size, collate
        ):
            if should_stop():
                return None
            total_loss += model(batch.to(ranks.device)).cross_entropy.cpu().double()
            num_predicted += batch.num_trained
            num_tokens += batch.input_ids.numel() if batch.sample_ids else 0
        loss, predicted, tokens = ranks.sum_floats([float(total_loss), num_predicted, num_tokens])
        values = {"eval_loss": loss / predicted}
        if plan.eval_bytes_per_token is not None:
            values["eval_bits_per_byte"] = loss / math.log(2) / (tokens * plan.eval_bytes_per_token)
        return values
