"""Texts that end a response: whether its tokens so far spell one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

Decode = Callable[[Sequence[int]], str]
"""Tokens -> their text."""

TOKENS_PER_CHAR = 4  # at most: a token may be a single byte of UTF-8
MORE_TOKENS = 4


@dataclass(frozen=True)
class StopTexts:
    """Texts that end a response."""

    texts: tuple[str, ...]
    decode: Decode

    def ended_by(self, ids: Sequence[int]) -> str | None:
        """The first of the texts that the tokens' text has, the end of which came with the last tokens; None: none.

        Asked after each token. The last tokens are looked at first, since decoding all of them each time would take
        time that grows with the square of their number.
        """
        last = ids[-(TOKENS_PER_CHAR * max(map(len, self.texts)) + MORE_TOKENS) :]
        found = self._first(last)
        return found if found is None or len(last) == len(ids) else self._first(ids)

    def _first(self, ids: Sequence[int]) -> str | None:
        text = self.decode(ids)
        places = [(place, stop) for stop in self.texts if (place := text.find(stop)) >= 0]
        return min(places)[1] if places else None


def text_before(text: str, stop: str | None) -> str:
    """A text up to the stop text that ended it; all of it, if none did."""
    return text if stop is None else text.partition(stop)[0]


def stop_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> StopTexts | None:
    """Texts that end a response of a tokenizer's tokens, special ones shown; None: there are none."""
    return StopTexts(tuple(texts), partial(_shown, tokenizer)) if texts else None


def _shown(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))
