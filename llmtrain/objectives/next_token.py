"""Next-token prediction: pretraining and SFT differ only in which labels are trained.

loss = sum over trained tokens of -w log p(token | the document so far) / sum of w

w is 1 unless a row weighs its tokens. A mixture of experts adds its coefficient times its balance loss: that of each
microbatch, weighted by the microbatch's tokens. It is the one term that depends on how a step is split.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from llmtrain.batch import PackedTokens
from llmtrain.protocols import Counts, LossOptions, Metrics


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy over the trained tokens of a step, with label smoothing and z-loss on request."""

    options: LossOptions = LossOptions()

    def counts(self, batch: PackedTokens) -> Counts:
        return {"tokens": batch.num_trained, "weight": batch.total_weight}

    def loss(self, model: nn.Module, batch: PackedTokens, totals: Counts) -> tuple[Tensor, Metrics]:
        """The batch's share of the mean over all trained tokens of the step; `loss` is logged without smoothing.

        `error_rate` is 1 - top-1 accuracy: the share of trained tokens of which another one was the most likely.
        """
        result, weight = model(batch, self.options), totals["weight"]
        metrics = {"loss": result.cross_entropy / weight, "error_rate": result.errors / totals["tokens"]}
        share = result.objective / weight
        if result.balance is not None:
            balance = result.balance.loss * (batch.num_tokens / totals["input_tokens"])
            share = share + result.balance.coefficient * balance
            metrics["balance_loss"] = balance.detach()
        return share, metrics
