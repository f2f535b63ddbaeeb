"""Random-looking 64 bits of 64 bits: the finaliser of SplitMix64 (Steele et al. 2014), the same on every machine."""

from __future__ import annotations

import numpy as np

from llmtrain.system.typing import Array

GOLDEN = 0x9E3779B97F4A7C15  # added per number, it makes SplitMix64's sequence of random numbers
MASK = 0xFFFFFFFFFFFFFFFF
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mixed(value: int) -> int:
    """The bits of one number, taken modulo 2^64."""
    z = value & MASK
    z = ((z ^ (z >> 30)) * FIRST) & MASK
    z = ((z ^ (z >> 27)) * SECOND) & MASK
    return z ^ (z >> 31)


def all_mixed(values: Array) -> Array:
    """The bits of each number, (numbers,) uint64."""
    z = (values ^ (values >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    result: Array = z ^ (z >> np.uint64(31))
    return result
