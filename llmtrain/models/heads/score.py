"""The scalar head of a reward model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

SCORE = "score"  # the name that transformers gives the head of every causal model that classifies


class ScoreHead(nn.Linear):
    """One number of each hidden state; it computes in fp32 whatever the trunk's precision is."""

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch 1"]:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())
