"""What cannot be seen is shown as an escape, by Unicode's own categories; what texts need stays."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from llmtrain.system.visible import HIDDEN, visible

NEEDED = {"\t", "\n", "\u200c", "\u200d"}
"""Tab, newline, and what joins letters of Persian and parts of emoji."""
SEEN = {*range(0x600, 0x606), 0x6DD, *range(0x890, 0x892), 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
"""Format characters that have a shape: signs before Arabic and Kaithi numbers, joiners of hieroglyphs."""


def test_all_control_and_format_characters_are_hidden_ones() -> None:
    missed = [
        f"U+{code:04X}"
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and chr(code) not in NEEDED
        and code not in SEEN
        and not HIDDEN.fullmatch(chr(code))
    ]
    assert missed == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
        ("a\r\nb\rc\td", "a\nb\\x0dc\td"),
    ],
)
def test_an_escape_names_the_character(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("text", ["", "Grüße, 漢字", "שלום", "👩\u200d👩\u200d👧", "क्\u200dष", "❤\ufe0f"])
def test_texts_of_all_languages_stay(text: str) -> None:
    assert visible(text) == text
