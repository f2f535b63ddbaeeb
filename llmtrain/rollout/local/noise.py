"""The noise that tokens are sampled with: a pure function of (seed, rollout, sample, position).

It comes from a counter-based generator, so a sample's noise does not depend on its batch, its order or its rank, and a
checkpoint needs no state of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

MANTISSA_BITS = 53


def exponentials(
    seed: int, rollout: int, sample_ids: Sequence[int], positions: Sequence[int], count: int
) -> Float64[Tensor, "rows count"]:
    """`count` numbers of the exponential distribution, above 0, for each row's sample and position.

    Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by seed and rollout, with
    sample and position in the upper words of its counter. Raw output is used, which numpy promises never to change.
    """
    key = np.array([seed, rollout], dtype=np.uint64)
    raw = np.empty((len(sample_ids), count), dtype=np.uint64)
    for row, (sample, position) in enumerate(zip(sample_ids, positions, strict=True)):
        counter = np.array([0, 0, position, sample], dtype=np.uint64)
        raw[row] = np.random.Philox(counter=counter, key=key).random_raw(count)
    uniform = ((raw >> np.uint64(64 - MANTISSA_BITS)) + 0.5) * 2.0**-MANTISSA_BITS
    return torch.from_numpy(-np.log1p(-uniform))
