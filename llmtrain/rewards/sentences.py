"""Text -> its sentences: rules for Latin scripts and CJK, enough to count what a chat model answers."""

from __future__ import annotations

import re
from collections.abc import Iterator

TITLES = frozenset({"mr", "mrs", "ms", "dr", "prof", "st", "gen", "sen", "gov", "capt", "lt", "col", "sgt", "rev"})
LINKS = frozenset({"e.g", "i.e", "vs", "cf", "ca", "viz"})
"""Abbreviations that what follows belongs to, whatever its first letter."""
NUMBERED = frozenset({"no", "nos", "fig", "figs", "eq", "vol", "sec", "ch", "p", "pp"})
"""Abbreviations that a number belongs to."""

OPENING = "\"'([*_\u201c\u2018\u00ab"  # quotation marks, brackets, emphasis
CLOSING = "\"')\\]*_\u201d\u2019\u00bb"
WIDE_STOPS = "\u3002\uff01\uff1f"  # of Chinese and Japanese, which have no space after them
WIDE_CLOSING = '"\u201d\u2019\u300d\u300f\uff09'

END = re.compile(
    rf"[.!?\u2026]+[{CLOSING}]*(?=\s|$)|[{WIDE_STOPS}]+[{WIDE_CLOSING}]*|(?<=[a-z][a-z])[.!?](?=[A-Z][a-z])"
)
LIST_NUMBER = re.compile(r"\(?(\d{1,3}|[A-Za-z])[.)]*")
CONTINUED = re.compile(r"\n(?=[ \t]*[a-z])")  # a line break within a sentence


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order; each has a letter or digit.

    A line break ends a sentence, unless the next line starts with a small letter. The dots of decimals, addresses,
    initials, titles and list numbers do not; those of `etc.`, `p.m.` and an ellipsis do, unless a small letter follows:
    "Dr. Lee paid $3.50, etc. I left..." has two sentences.
    """
    return [
        sentence
        for line in CONTINUED.sub(" ", text).splitlines()
        for sentence in _of_line(line.strip())
        if any(character.isalnum() for character in sentence)
    ]


def _of_line(line: str) -> Iterator[str]:
    start = 0
    for end in END.finditer(line):
        if _ends(line[start : end.start()], end.group(), line[end.end() :].lstrip()):
            yield line[start : end.end()].strip()
            start = end.end()
    yield line[start:].strip()


def _ends(before: str, mark: str, after: str) -> bool:
    """Whether a sentence ends at a mark, from what it holds before it and what follows."""
    if not after or mark[0] in WIDE_STOPS:
        return True
    if after.lstrip(OPENING)[:1].islower():
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    word = before.split()[-1].lstrip(OPENING + "-").lower() if before.split() else ""
    if LIST_NUMBER.fullmatch(before.strip(" *_-")):
        return False
    is_initial = len(word) == 1 and word.isalpha() and before.rstrip()[-1:].isupper()
    return not (word in TITLES | LINKS or is_initial or (word in NUMBERED and after[0].isdigit()))
