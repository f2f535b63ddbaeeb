"""Log ratios that are no more than rounding.

A policy that has not been trained gives the reference's logprobs, but for rounding: the same tokens in another batch
are summed in another order. Ranked by such differences, answers seem to be ordered where they are all equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROUNDING = 8 * torch.finfo(torch.float32).eps  # 1e-6: a few of the last digits


def is_rounding(
    logprobs: Float[Tensor, " answers"], ref_logprobs: Float[Tensor, " answers"], lengths: Sequence[int]
) -> Bool[Tensor, " answers"]:
    """Whether an answer's logprob, in nats, differs from the reference's by no more than rounding.

    Rounding is relative to the logprob, or to one nat per token (`lengths`) if the answer is nearly certain: logits are
    of that size at least.
    """
    size = torch.maximum(ref_logprobs.abs(), torch.tensor(lengths, dtype=logprobs.dtype, device=logprobs.device))
    return (logprobs - ref_logprobs).abs() <= ROUNDING * size
