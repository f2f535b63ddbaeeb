"""The answer in a response: what follows its thoughts, and the code blocks in that. All rewards read these here."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence
from typing import NamedTuple

from llmtrain.data.thoughts import without_thoughts

# ``` or ~~~ after indentation, a list's mark or a sentence; then the info string: python title="a.py"
FENCE = re.compile(r"(?P<before>[^\n]*?)(?<![`~])(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)")
OPENING = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})[ \t{.]*[A-Za-z]")  # one that names its language
MOST_FURTHER = 3  # spaces that a closing fence may be indented more (CommonMark 0.31, section 4.5)
LEADING = re.compile(r"[ \t]*(?:[-*+][ \t]+|\d+[.)][ \t]+|>[ \t]?)*")
LANGUAGE = re.compile(r"[\s{.]*([A-Za-z][\w+#-]*)")


class Block(NamedTuple):
    """A code block."""

    language: str  # in small letters; "" if it names none
    text: str


def code_blocks(text: str) -> list[Block]:
    """The code blocks of a text, in order: fenced by ``` or ~~~, of any length, indented or not, closed or not."""
    blocks: list[Block] = []
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    place = 0
    while place < len(lines):
        opening = FENCE.match(lines[place])
        place += 1
        if opening is None:
            continue
        fence, info = opening["fence"], opening["info"]
        if fence[0] == "~" and opening["before"].strip(" \t>"):
            continue  # ~~~ within a sentence
        language = LANGUAGE.match(info)
        inline, closed, _ = info.partition(fence)
        if closed:  # ```json {"a": 1}```
            if language is None or not inline[language.end() : language.end() + 1].isspace():
                blocks.append(Block("", inline.strip()))
            else:
                blocks.append(Block(language[1].lower(), inline[language.end() :].strip()))
            continue
        indent = len(LEADING.match(opening["before"])[0])  # type: ignore[index]
        held, place = _held(lines, place, fence, indent)
        text_of_block = "\n".join(_dedented(line, indent) for line in held)
        blocks.append(Block(language[1].lower() if language else "", textwrap.dedent(text_of_block)))
    return blocks


def fenced(response: str, languages: Collection[str] = ()) -> str:
    """The first code block of an answer in one of the languages, else the first that names none, else the first.

    Without a code block it is the whole answer. Thoughts, with all that is in them, are not looked at.
    """
    answer = without_thoughts(response)
    blocks = code_blocks(answer)
    if blocks:
        ranks = [0 if block.language in languages else 1 if not block.language else 2 for block in blocks]
        return blocks[ranks.index(min(ranks))].text
    return textwrap.dedent(answer.replace("\r\n", "\n").strip("\n")).strip()


def _held(lines: Sequence[str], start: int, fence: str, indent: int) -> tuple[list[str], int]:
    """The lines of a block that begins at `start`, and the place of the line after it.

    A fence that is indented further than the one that opened the block is text, as in a docstring, if another one
    closes the block before the next begins.
    """
    further: int | None = None
    for place in range(start, len(lines)):
        line = lines[place]
        end = _closing(line, fence)
        if end is None:
            if further is not None and OPENING.match(line):
                break
        elif end > indent + MOST_FURTHER and not line[:end].strip():
            further = place if further is None else further
        else:
            rest = [line[:end]] if line[:end].strip(" \t>") else []
            return [*lines[start:place], *rest], place + 1
    if further is None:
        return list(lines[start:]), len(lines)
    return list(lines[start:further]), further + 1


def _closing(line: str, fence: str) -> int | None:
    """Where a line closes a fence: it begins with one as long, and no language follows; or it ends with one."""
    begun, ended = line.lstrip(" \t>"), line.rstrip()
    rest, before = begun.lstrip(fence[0]), ended.rstrip(fence[0])
    if len(begun) - len(rest) >= len(fence) and not rest[:1].isalnum():
        return len(line) - len(begun)
    if fence[0] == "`" and len(ended) - len(before) >= len(fence):
        return len(before)
    return None


def _dedented(line: str, indent: int) -> str:
    spaces = len(line) - len(line.lstrip(" \t>"))
    return line[min(indent, spaces) :]
