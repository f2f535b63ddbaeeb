"""Characters that should not be there: text decoded wrongly (ftfy), and what markup, editors and converters leave."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain.data.quality.items import Item, Span

MOJIBAKE = "decoded wrongly (mojibake)"
AROUND = 60
MOST_SHOWN = 4
MOST_CHARACTERS = 12

ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,6}|#x[0-9a-fA-F]{2,5});")
TAG = re.compile(
    r"</?(?:p|br|div|span|b|i|em|strong|a|ul|ol|li|table|tr|td|h[1-6]|img|script|style)(?:\s[^<>]*)?/?>", re.I
)
LOST = re.compile("\ufffd")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff]")
RETURN = re.compile(r"\r")
ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}")


@dataclass(frozen=True)
class Kind:
    """One kind of odd characters."""

    name: str
    meaning: str
    find: Callable[[str], Span | None]  # the first


@dataclass(frozen=True)
class Odd:
    """An item with odd characters."""

    item: Item
    span: Span  # of the first


@dataclass(frozen=True)
class Repaired:
    """A stretch of text as it is, and as ftfy would repair it."""

    item: Item
    span: Span
    after: str


@dataclass(frozen=True)
class Characters:
    """What the sample's texts are written in."""

    num_items: int
    num_odd: int  # with any kind
    counts: Mapping[str, int]  # kind -> items
    by_source: Sequence[Mapping[str, int]]
    examples: Mapping[str, Sequence[Odd]]
    repairs: Sequence[Repaired]
    ascii_share: float  # of all characters
    others: Sequence[tuple[str, int]]  # the most frequent characters outside ASCII


def _first(pattern: re.Pattern[str]) -> Callable[[str], Span | None]:
    def find(text: str) -> Span | None:
        found = pattern.search(text)
        return None if found is None else Span(*found.span())

    return find


def _uncomposed(text: str) -> Span | None:
    """The first letter whose accent is a character of its own where one character has both."""
    if unicodedata.is_normalized("NFC", text):
        return None
    place = next((i for i, char in enumerate(text) if unicodedata.combining(char)), 0)
    return Span(max(0, place - 1), place + 1)


KINDS = (
    Kind(
        "lost characters (U+FFFD)",
        "were not readable when the text was decoded; they cannot be restored",
        _first(LOST),
    ),
    Kind("control characters", "are left by terminals, PDFs and broken conversions", _first(CONTROL)),
    Kind("invisible characters", "zero-width, soft hyphens, or those that reorder text", _first(INVISIBLE)),
    Kind("private characters", "mean something in one font only, such as bullets of PDFs", _first(PRIVATE)),
    Kind("HTML entities", "`&amp;` instead of &: markup was not decoded", _first(ENTITY)),
    Kind("HTML tags", "`<br>`, `<p>`: markup was not removed; normal in texts about HTML", _first(TAG)),
    Kind("escapes written out", r"`\u00e9` instead of é: JSON was encoded twice; normal in code", _first(ESCAPE)),
    Kind("carriage returns", "line ends of Windows; a model learns both forms", _first(RETURN)),
    Kind("uncomposed letters", "é as e and an accent: other tokens than é (Unicode NFC)", _uncomposed),
)


def characters(items: Sequence[Item], num_sources: int) -> Characters:
    """Look for each kind in each item. Raises ValueError if `ftfy` is missing."""
    try:
        import ftfy
    except ImportError:
        raise ValueError("odd characters need ftfy: pip install 'llmtrain[data]'") from None
    counts: Counter[str] = Counter()
    by_source: list[Counter[str]] = [Counter() for _ in range(num_sources)]
    examples: dict[str, list[Odd]] = {}
    repairs: list[Repaired] = []
    alphabet: Counter[str] = Counter()
    num_odd = num_chars = 0
    for item in items:
        found: list[str] = []
        num_chars += len(item.text)
        for kind in KINDS:
            if (span := kind.find(item.text)) is not None:
                found.append(kind.name)
                shown = examples.setdefault(kind.name, [])
                if len(shown) < MOST_SHOWN:
                    shown.append(Odd(item, span))
        if not item.text.isascii():
            alphabet.update(char for char in item.text if ord(char) > 127)
            repaired = repair(item, ftfy)
            if repaired is not None:
                found.append(MOJIBAKE)
                repairs += [repaired] if len(repairs) < 2 * MOST_SHOWN else []
        counts.update(found)
        by_source[item.source].update(found)
        num_odd += bool(found)
    return Characters(
        num_items=len(items),
        num_odd=num_odd,
        counts={name: counts[name] for name in (MOJIBAKE, *(kind.name for kind in KINDS)) if counts[name]},
        by_source=by_source,
        examples=examples,
        repairs=repairs,
        ascii_share=1 - sum(alphabet.values()) / max(1, num_chars),
        others=alphabet.most_common(MOST_CHARACTERS),
    )


def repair(item: Item, ftfy: Any) -> Repaired | None:
    """The first line of an item that ftfy takes for wrongly decoded, and what it would be; None: there is none.

    Lines are judged one by one, as ftfy itself does, since a text may be of several origins.
    """
    place = 0
    for line in item.text.split("\n"):
        if not line.isascii():
            after = ftfy.fix_encoding(line)
            if after != line:
                start = next((i for i, (one, other) in enumerate(zip(line, after, strict=False)) if one != other), 0)
                first = max(0, start - AROUND)
                end = min(len(line), start + 2 * AROUND)
                fixed = ftfy.fix_encoding(line[first:end])
                return Repaired(item, Span(place + first, place + end), fixed)
        place += len(line) + 1
    return None
