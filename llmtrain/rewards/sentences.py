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
    rf"(?<![.!?\u2026])[.!?\u2026]+[{CLOSING}]*(?=\s|$)|[{WIDE_STOPS}]+[{WIDE_CLOSING}]*|(?<=[a-z][a-z])[.!?](?=[A-Z][a-z])"
)
AFTER = re.compile(rf"\s*(?P<opening>[{re.escape(OPENING)}]*)(?P<first>.?)", re.DOTALL)
MOST_LOOKED_AT = 64  # characters before a mark: longer than any abbreviation
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
        if _ends(line, start, end):
            yield line[start : end.end()].strip()
            start = end.end()
    yield line[start:].strip()


def _ends(line: str, start: int, end: re.Match[str]) -> bool:
    """Whether a sentence that begins at `start` ends at a mark. Looks a few characters back and ahead, however long."""
    mark, after = end.group(), AFTER.match(line, end.end())
    assert after is not None  # it matches anything
    if not (after["opening"] or after["first"]) or mark[0] in WIDE_STOPS:
        return True
    if after["first"].islower():
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    before = line[max(start, end.start() - MOST_LOOKED_AT) : end.start()]
    is_whole = end.start() - start <= MOST_LOOKED_AT
    if is_whole and LIST_NUMBER.fullmatch(before.strip(" *_-")):
        return False
    word = before.split()[-1].lstrip(OPENING + "-").lower() if before.split() else ""
    is_initial = len(word) == 1 and word.isalpha() and before.rstrip()[-1:].isupper()
    has_number = not after["opening"] and after["first"].isdigit()
    return not (word in TITLES | LINKS or is_initial or (word in NUMBERED and has_number))
