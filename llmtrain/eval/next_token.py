"""Held-out loss and error rate over stored packs, per token, and bits per byte, which no tokenizer can flatter.

bits_per_byte = summed loss / ln 2 / bytes of the documents
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.data.loader.batches import collate, rank_batches
from llmtrain.data.loader.plan import DataPlan
from llmtrain.protocols import Ranks
from llmtrain.statistics.intervals import ratio_interval


@dataclass(frozen=True)
class HeldOut:
    """The held-out packs of a plan, split among ranks; calling it evaluates a model."""

    plan: DataPlan
    ranks: Ranks

    @torch.no_grad()
    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """`eval_loss` (nats per trained token), `eval_error_rate` (1 - top-1 accuracy); None if asked to stop.

        The loss is the mean by the weights of the tokens, as in training. `eval_loss_low` and `eval_loss_high` are its
        95 % interval by the spread between documents, of which only the pieces within a pack are seen; a single one has
        none. `eval_bits_per_byte` if all tokens are trained: bytes are those of the evaluated documents, in proportion
        to tokens if only some are evaluated. Without BOS the first token of each document is not predicted: its bytes
        count, its bits do not.
        """
        total_loss = total_errors = torch.zeros((), dtype=torch.float64)
        documents = torch.zeros(6, dtype=torch.float64)
        num_predicted = num_tokens = 0
        total_weight = 0.0
        plan, ranks = self.plan, self.ranks
        packs = range(plan.num_eval_packs)
        for batch in rank_batches(
            packs, plan.eval_pack, plan.packs_per_microbatch, ranks.rank, ranks.world_size, collate
        ):
            if should_stop():
                return None
            result = model(batch.to(ranks.device))
            total_loss = total_loss + result.cross_entropy.cpu()
            total_errors = total_errors + result.errors.cpu()
            documents += document_sums(result.token_losses.cpu().double(), batch)
            num_predicted += batch.num_trained
            total_weight += batch.total_weight
            num_tokens += batch.input_ids.numel() if batch.sample_ids else 0
        mine = [float(total_loss), float(total_errors), num_predicted, total_weight, num_tokens, *documents.tolist()]
        loss, errors, predicted, weight, tokens, *sums = ranks.sum_floats(mine)
        values = {"eval_loss": loss / weight, "eval_error_rate": errors / predicted}
        low, high = ratio_interval(sums)
        if not math.isnan(low):
            values |= {"eval_loss_low": low, "eval_loss_high": high}
        perplexity = torch.tensor(loss / weight, dtype=torch.float64).exp()  # inf if the model diverged, no error
        shown = f"perplexity {perplexity:.4g}"
        if plan.eval_bytes_per_token is not None:
            values["eval_bits_per_byte"] = loss / math.log(2) / (tokens * plan.eval_bytes_per_token)
            shown = f"{values['eval_bits_per_byte']:.4f} bits per byte"
        summary = f"held-out loss {values['eval_loss']:.4f}, {shown}, error rate {values['eval_error_rate']:.1%}"
        return values | {"summary": summary}


def document_sums(token_losses: Float[Tensor, " trained"], batch: PackedTokens) -> Float[Tensor, " sums"]:
    """What `ratio_interval` takes, over the documents of a batch that have trained tokens."""
    lengths = torch.tensor(batch.segment_lengths)
    is_label = batch.labels.cpu() != IGNORE_INDEX
    document = torch.arange(len(lengths)).repeat_interleave(lengths)[is_label]
    losses = torch.zeros(len(lengths), dtype=torch.float64).index_add_(0, document, token_losses)
    weights = None if batch.label_weights is None else batch.label_weights.cpu().double()[is_label]
    tokens = document.bincount(weights, minlength=len(lengths)).double()
    columns = torch.stack([tokens.sign(), losses, tokens, losses**2, losses * tokens, tokens**2])
    return columns.sum(1)
