"""Which pack comes when: a pure function of (seed, position), in memory that does not grow with the data.

A *position* counts packs since the start of training, over all ranks and epochs. Nothing here knows of
ranks, workers or restarts, so resuming needs no more than the position, and another world size with
the same global batch sees the same samples.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

FEISTEL_ROUNDS = 4


def permuted_index(index: int, size: int, key: int) -> int:
    """Where a keyed permutation of range(size) sends `index`.

    A balanced Feistel network over the smallest even number of bits that holds `size`, walked until
    it lands inside (cycle walking: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
    The domain is at most four times `size`, so the walk takes four rounds or fewer on average.
    """
    assert 0 <= index < size, (index, size)
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & half_mask
        for round_number in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (_mix(right, round_number, key) & half_mask)
        index = (left << half_bits) | right
        if index < size:
            return index


def skipped_position(position: int, skip_list: Sequence[int]) -> int:
    """The position that takes the place of `position` once those in the sorted `skip_list` are left out."""
    shifted = position
    while True:
        moved = position + bisect.bisect_right(skip_list, shifted)
        if moved == shifted:
            return shifted
        shifted = moved


class SampleOrder:
    """Maps a position to (source, pack), over one or several sources.

    Without weights the sources are one pool and each pack comes once per epoch, in an order shuffled
    again for each epoch. With weights each source has its own epochs, and any stretch of positions
    holds the sources in proportion to their weights, to within one block.
    """

    def __init__(self, num_packs: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        assert num_packs and all(count > 0 for count in num_packs), num_packs
        self._num_packs = list(num_packs)
        self._starts = np.concatenate([[0], np.cumsum(num_packs)]).tolist()
        self._seed = seed
        self._shares: np.ndarray[Any, Any] | None = None
        if weights is not None:
            shares = np.asarray(weights, dtype=np.float64) / sum(weights)
            self._shares = np.concatenate([[0.0], np.cumsum(shares)])
            self._shares[-1] = 1.0
            # A block gives each source at least two places, so that rounding never takes a place away.
            self._block_size = max(1024, int(np.ceil(4 / shares.min())))
            self._block: tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None

    @property
    def epoch_size(self) -> int:
        """Packs of all sources together."""
        return int(self._starts[-1])

    def __call__(self, position: int) -> tuple[int, int]:
        """(source, pack within the source) at a position."""
        if self._shares is None:
            epoch, index = divmod(position, self.epoch_size)
            pack = permuted_index(index, self.epoch_size, self._key("pool", epoch))
            source = bisect.bisect_right(self._starts, pack) - 1
            return source, pack - self._starts[source]
        source, ordinal = self._place(position)
        epoch, index = divmod(ordinal, self._num_packs[source])
        return source, permuted_index(index, self._num_packs[source], self._key(f"source {source}", epoch))

    def _place(self, position: int) -> tuple[int, int]:
        """(source, how many of that source came before) of a position in the weighted mixture."""
        number, offset = divmod(position, self._block_size)
        if self._block is None or self._block[0] != number:
            before, after = self._counts(number * self._block_size), self._counts((number + 1) * self._block_size)
            places = np.repeat(np.arange(len(before)), after - before)
            np.random.default_rng(self._key("block", number)).shuffle(places)
            self._block = (number, before, places)
        _, before, places = self._block
        source = int(places[offset])
        return source, int(before[source] + np.count_nonzero(places[:offset] == source))

    def _counts(self, position: int) -> np.ndarray[Any, Any]:
        """Packs of each source before a block's start: rounded cumulative shares, which always add up."""
        assert self._shares is not None
        return np.diff(np.floor(self._shares * position + 0.5).astype(np.int64))

    def _key(self, purpose: str, number: int) -> int:
        digest = blake2b(f"{self._seed}/{purpose}/{number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def _mix(value: int, round_number: int, key: int) -> int:
    """A round function with good avalanche: the finaliser of SplitMix64 (Steele et al. 2014)."""
    z = (value + key + round_number * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)
