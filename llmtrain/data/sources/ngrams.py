"""Hashes of word n-grams, for finding texts that share some of them.

Words are runs of letters, digits and underscores, lowercased; punctuation and spacing do not count. In scripts
without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer) each letter is a word: `我们 train` is 我, 们, train. The
hashes are equal in every process. Two different n-grams collide with a chance of 2^-64.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

Hashes = np.ndarray[Any, np.dtype[np.uint64]]

NO_SPACES = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao; Burmese; Khmer
    r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana and iteration marks
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
WORD = re.compile(rf"(?=\w)[{NO_SPACES}]|[^\W{NO_SPACES}]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Base of the polynomial that joins words' hashes: odd, so that no bit of a word is lost."""
MAX_REMEMBERED_WORDS = 1 << 20


class WordHashes(dict[str, int]):
    """word -> 64-bit hash, computed once while it is remembered."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MAX_REMEMBERED_WORDS:
            self.clear()
        value = self[word] = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
        return value


def ngram_hashes(pieces: Iterable[str], n: int, words: WordHashes) -> Iterator[Hashes]:
    """The hashes of all n-grams of a text given in pieces that cut no word, an array for each piece with any."""
    carried = np.zeros(0, dtype=np.uint64)  # the last n - 1 words' hashes of the pieces before
    for piece in pieces:
        run = np.concatenate([carried, word_hashes(piece, words)])
        if len(run) >= n:
            yield join_hashes(run, n)
        carried = run[len(run) - min(n - 1, len(run)) :]


def word_hashes(text: str, words: WordHashes) -> Hashes:
    """The hash of each word of a text."""
    return np.array([words[word] for word in WORD.findall(text.lower())], dtype=np.uint64)


def word_places(text: str) -> list[tuple[int, int]]:
    """Where each word of `word_hashes` is: characters [start, end) of the text as it is written.

    `İ` is two characters in lower case, a letter and an accent, which ends a word: `İz` is i, z at (0, 1), (1, 2).
    """
    lowered = text.lower()
    found = [match.span() for match in WORD.finditer(lowered)]
    if len(lowered) == len(text):
        return found
    written = [place for place, char in enumerate(text) for _ in char.lower()]
    return [(written[start], written[end - 1] + 1) for start, end in found]


def join_hashes(run: Hashes, n: int) -> Hashes:
    """Hashes of the n-grams of a run of words' hashes; none of fewer than n words."""
    count = max(0, len(run) - n + 1)
    joined = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        joined = joined * MULTIPLIER + run[offset : offset + count]  # modulo 2^64
    return joined
