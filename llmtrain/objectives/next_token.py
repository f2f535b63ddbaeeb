"""Next-token prediction: pretraining and SFT differ only in which labels are trained.

loss = sum over trained tokens of -log p(token | the document so far) / number of trained tokens
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
        return {"tokens": batch.num_trained}

    def loss(self, model: nn.Module, batch: PackedTokens, totals: Counts) -> tuple[Tensor, Metrics]:
        """The batch's share of the mean over all trained tokens of the step; `loss` is logged without smoothing."""
        result = model(batch, self.options)
        return result.objective / totals["tokens"], {"loss": result.cross_entropy / totals["tokens"]}
