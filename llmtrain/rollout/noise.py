"""The noise that tokens are drawn with: a pure function of (seed, rollout, sample, position).

One uniform number a token, from a counter-based generator, so a sample's noise depends on neither the batch it stands
in, nor the order, nor the rank, and needs no state in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

MANTISSA_BITS = 53


def uniforms(
    seed: int, rollout: int, sample_ids: Sequence[int], num_positions: int
) -> Float64[Tensor, "samples positions"]:
    """Numbers in [0, 1): a stream for each sample, of which position p takes the p-th.

    Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by seed and rollout, the
    sample in the upper half of its counter. Raw output is used, which numpy promises never to change.
    """
    key = np.array([seed, rollout], dtype=np.uint64)
    raw = np.empty((len(sample_ids), num_positions), dtype=np.uint64)
    for row, sample in enumerate(sample_ids):
        counter = np.array([0, 0, sample, 0], dtype=np.uint64)
        raw[row] = np.random.Philox(counter=counter, key=key).random_raw(num_positions)
    return torch.from_numpy((raw >> np.uint64(64 - MANTISSA_BITS)) * 2.0**-MANTISSA_BITS)
