"""Which pack comes when: a pure function of (seed, position), in memory that does not grow with the data.

A *position* counts packs since the start of training, over all ranks and epochs. Nothing here knows of
ranks, workers or restarts, so resuming needs no more than the position, and another world size with
the same global batch sees the same samples.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from llmtrain.data.random_bits import GOLDEN, MASK, all_mixed, mixed
from llmtrain.system.typing import Array

ORDER_VERSION = 2  # of everything here: a run keeps the one that it started with
SHUFFLED_SIZE = 1 << 12  # up to here every permutation is equally likely; a larger range is walked without memory
FEISTEL_ROUNDS = 8
BLOCK_SIZE = 1 << 8  # positions of a weighted mixture within which sources come in random order
WEIGHT_BITS = 64  # of a source's share


def permuted_index(index: int, size: int, key: int) -> int:
    """Where a keyed permutation of range(size) sends `index`.

    Up to SHUFFLED_SIZE a shuffle; above, a balanced Feistel network over the smallest even number of bits that holds
    `size`, walked until it lands inside (cycle walking: Black and Rogaway 2002, "Ciphers with Arbitrary Finite
    Domains"). Its domain is at most four times `size`, so the walk takes four rounds or fewer on average; of a few
    items it would reach some permutations far more often than others.
    """
    assert 0 <= index < size, (index, size)
    if size <= SHUFFLED_SIZE:
        return int(_shuffled(size, key)[index])
    half_bits = ((size - 1).bit_length() + 1) // 2
    half_mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & half_mask
        for round_number in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (mixed(right + key + round_number * GOLDEN) & half_mask)
        index = (left << half_bits) | right
        if index < size:
            return index


@lru_cache(maxsize=256)
def _shuffled(size: int, key: int) -> Array:
    """A permutation of range(size), each as likely as any other over keys: the order of as many random numbers."""
    numbers = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(key & MASK)
    return np.argsort(all_mixed(numbers), kind="stable").astype(np.uint16)


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
    again for each epoch, or, `as_given`, in the one that it has, source after source. With weights each source has its
    own epochs, and after any number of whole blocks the sources have been taken in proportion to their weights, to
    within a pack or two each.
    """

    def __init__(
        self,
        num_packs: Sequence[int],
        weights: Sequence[float | Fraction] | None,
        seed: int,
        *,
        as_given: bool = False,
    ) -> None:
        """`weights` are shares of the positions, in any unit."""
        assert num_packs and all(count > 0 for count in num_packs), num_packs
        assert weights is None or not as_given
        self._as_given = as_given
        self._num_packs = list(num_packs)
        self._starts = np.concatenate([[0], np.cumsum(num_packs)]).tolist()
        self._seed = seed
        self._weights: list[int] | None = None
        if weights is not None:
            shares = [Fraction(weight) for weight in weights]
            self._weights = [max(1, round(share / sum(shares) * 2**WEIGHT_BITS)) for share in shares]
            self._block: tuple[int, Array, Array] | None = None  # number, and each position's source and ordinal

    @property
    def epoch_size(self) -> int:
        """Packs of all sources together."""
        return int(self._starts[-1])

    @property
    def is_weighted(self) -> bool:
        """Whether each source has its own epochs."""
        return self._weights is not None

    def __call__(self, position: int) -> tuple[int, int]:
        """(source, pack within the source) at a position."""
        if self._weights is None:
            epoch, index = divmod(position, self.epoch_size)
            pack = index if self._as_given else permuted_index(index, self.epoch_size, self._key("pool", epoch))
            source = bisect.bisect_right(self._starts, pack) - 1
            return source, pack - self._starts[source]
        number, offset = divmod(position, BLOCK_SIZE)
        sources, ordinals = self._places(number)
        source = int(sources[offset])
        epoch, index = divmod(int(ordinals[offset]), self._num_packs[source])
        return source, permuted_index(index, self._num_packs[source], self._key(f"source {source}", epoch))

    def taken(self, position: int) -> list[int]:
        """Packs of each source before a position of the weighted mixture."""
        number, offset = divmod(position, BLOCK_SIZE)
        within = np.bincount(self._places(number)[0][:offset], minlength=len(self._num_packs))
        return [before + more for before, more in zip(self._counts(number * BLOCK_SIZE), within.tolist(), strict=True)]

    def _places(self, number: int) -> tuple[Array, Array]:
        """Of each position of a block its source, and how many of that source came before."""
        if self._block is None or self._block[0] != number:
            before, after = (np.array(self._counts(end * BLOCK_SIZE)) for end in (number, number + 1))
            counts = after - before
            sources = np.repeat(np.arange(len(counts)), counts)[_shuffled(BLOCK_SIZE, self._key("block", number))]
            ordinals = np.empty(BLOCK_SIZE, dtype=np.int64)
            earlier = np.repeat(before - (np.cumsum(counts) - counts), counts)
            ordinals[np.argsort(sources, kind="stable")] = np.arange(BLOCK_SIZE) + earlier
            self._block = (number, sources, ordinals)
        return self._block[1:]

    def _counts(self, position: int) -> list[int]:
        """Packs of each source before a block's start, which add up, never fall, and follow the weights.

        Each source in turn takes its rounded share of what those before it have left.
        """
        assert self._weights is not None
        counts, left, weight_left = [], position, sum(self._weights)
        for weight in self._weights:
            counts.append((2 * left * weight + weight_left) // (2 * weight_left))
            left, weight_left = left - counts[-1], weight_left - weight
        return counts

    def _key(self, purpose: str, number: int) -> int:
        digest = blake2b(f"{self._seed}/{purpose}/{number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")
