"""What an output head does to its projection: nothing, a scale (Granite, Cohere 2), a softcap (Gemma 2), or both.

    logits = softcap tanh(scale z / softcap),   z = W (input_scale h) + b

`models/wrappers/head_form.py` finds a model's form by trial.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class HeadForm:
    """The numbers of a head's form."""

    input_scale: float = 1.0  # of hidden states
    scale: float = 1.0  # of their projection
    softcap: float | None = None  # no logit is larger; None: no bound

    def inputs(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """What is projected."""
        return hidden if self.input_scale == 1.0 else hidden * self.input_scale

    def logits(self, projected: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """The logits of a projection, which is written over."""
        if self.softcap is not None:
            return projected.mul_(self.scale / self.softcap).tanh_() * self.softcap
        return projected if self.scale == 1.0 else projected.mul_(self.scale)

    def slopes(self, logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens vocab"] | float | None:
        """What each logit changes by with its projection: one number for all of them without a softcap; None: 1."""
        if self.softcap is not None:
            return (logits / self.softcap).square_().neg_().add_(1.0).mul_(self.scale)
        return None if self.scale == 1.0 else self.scale


PLAIN = HeadForm()
"""A head that only projects."""
