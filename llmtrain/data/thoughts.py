r"""How models write a thought into the text of an answer: `<think>A sum.</think>4`, `[THINK]A sum.[/THINK]4`.

Training that leaves thoughts out and rewards that look at answers alone read them here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

NAMES = "think|thinking|thought|reasoning|seed:think"
OTHERS = {
    "[THINK]": "[/THINK]",  # Magistral
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",  # gpt-oss
    "<|channel>thought": "<channel|>",  # Gemma 4
}
"""What else opens a thought -> what ends it."""
OPENING = re.compile("|".join([rf"<({NAMES})>", *map(re.escape, OTHERS)]))
CLOSED = re.compile("|".join([rf"</({NAMES})>", *map(re.escape, OTHERS.values())]))
OPENED = re.compile(rf"\s*(?:{OPENING.pattern})")
OPENED_LAST = re.compile(rf"(?:{OPENING.pattern})\s*\Z")


def without_thoughts(response: str) -> str:
    """What follows the last `</think>`; nothing if the response begins to think and does not end it.

    "<think>18? No.</think>\\nIt is 19." is "\\nIt is 19."; tags in the middle of an answer are part of it.
    """
    ends = [end.end() for end in CLOSED.finditer(response)]
    rest = response[ends[-1] :] if ends else response
    return "" if OPENED.match(rest) else rest


def begins_with_thought(text: str) -> bool:
    """Whether a text begins with a thought that is not empty."""
    opened = OPENED.match(text)
    return opened is not None and CLOSED.match(text[opened.end() :].lstrip()) is None


def is_unended(text: str) -> bool:
    """Whether a text begins a thought and does not end it."""
    return OPENED.match(text) is not None and CLOSED.search(text) is None


def thoughts(text: str, start: int = 0) -> Iterator[tuple[int, int]]:
    """Where the thoughts of an answer are, from what opens each to what ends it; those without a word are none.

    The first may be open already: of "A sum.</think>4<think>Sure?</think>5", "A sum." and "<think>Sure?".
    """
    first = CLOSED.search(text, start)
    if first is None:
        return
    if OPENING.search(text, start, first.start()) is None:
        if text[start : first.start()].strip():
            yield start, first.start()
        start = first.end()
    missing: set[str] = set()
    for opening in OPENING.finditer(text, start):
        closing = OTHERS.get(opening[0], f"</{opening[1]}>")
        end = -1 if opening.start() < start or closing in missing else text.find(closing, opening.end())
        if end < 0:
            missing |= set() if opening.start() < start else {closing}
            continue
        if text[opening.end() : end].strip():
            yield opening.start(), end
        start = end
