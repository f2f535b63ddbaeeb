"""The reward model's loss: the chosen answer's score is above the rejected one's (Bradley and Terry 1952).

loss = sum over pairs of -weight * log sigmoid(chosen - rejected) / sum of weights
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from llmtrain.batch import PreferencePairs
from llmtrain.objectives.preference_losses import bradley_terry, correctness
from llmtrain.protocols import Counts, Metrics


@dataclass(frozen=True)
class PairwiseReward:
    """Bradley-Terry over the pairs of a step; the model gives a score for each segment."""

    margin: bool = False  # require the margins of the rows
    centering: float = 0.0

    def counts(self, batch: PreferencePairs) -> Counts:
        """Tokens that are read, and comparisons: all pairs of one ranking are one comparison."""
        return {"tokens": batch.num_tokens, "pairs": float(batch.weights.sum())}

    def loss(self, model: nn.Module, batch: PreferencePairs, totals: Counts) -> tuple[Tensor, Metrics]:
        """The batch's share of the mean over all comparisons of the step; a tie is half right."""
        scores = model(batch)  # (segments,)
        chosen, rejected = scores[::2], scores[1::2]
        losses = bradley_terry(
            chosen, rejected, batch.margins if self.margin else None, batch.weights, centering=self.centering
        )
        share = losses.sum() / totals["pairs"]
        margins = (chosen - rejected).detach()
        num_right = (batch.weights * correctness(margins)).sum()
        return share, {
            "loss": share.detach(),
            "accuracy": num_right / totals["pairs"],
            "margin": (batch.weights * margins).sum() / totals["pairs"],
        }
