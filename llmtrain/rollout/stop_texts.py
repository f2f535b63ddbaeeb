"""Texts that end a response: whether its tokens so far spell one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]
"""Tokens -> their text."""

TOKENS_PER_CHAR = 4  # at most: a token may be a single byte of UTF-8
MORE_TOKENS = 4


@dataclass(frozen=True)
class StopTexts:
    """Texts that end a response."""

    texts: tuple[str, ...]
    decode: Decode

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the text of the tokens has one of the texts, the last of which came with the last tokens.

        Asked after each token. The last tokens are looked at first, since decoding all of them each time would take
        time that grows with the square of their number.
        """
        last = ids[-(TOKENS_PER_CHAR * max(map(len, self.texts)) + MORE_TOKENS) :]
        return self._has(last) and (len(last) == len(ids) or self._has(ids))

    def _has(self, ids: Sequence[int]) -> bool:
        text = self.decode(ids)
        return any(stop in text for stop in self.texts)
