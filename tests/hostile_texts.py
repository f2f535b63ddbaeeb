"""Texts that rule a terminal which obeys them."""

from __future__ import annotations

HOSTILE = {
    "clear screen": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://a.example\x1b\\click\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "C1 sequence": "\x9b31m\x9d0;owned\x9c",
    "overwritten": "accuracy 0.1\raccuracy 0.9",
    "rubbed out": "no\b\byes\x7f",
    "bidirectional": "\u202egpj.exe\u2066",
    "line separator": "one\u2028two\u2029three\x85four",
    "NUL and bell": "a\0b\ac\vd\fe",
    "half of a pair": "\ud83d and \udc80",
    "tags": "hi\U000e0041\U000e0042",
}
OBEYED = {*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x2028, 0x2029, *range(0xE0000, 0xE1000)} - {0x0A}


def obeyed(text: str) -> set[str]:
    """The characters of an output that a terminal obeys; newlines aside."""
    return {letter for letter in text if ord(letter) in OBEYED or 0xD800 <= ord(letter) < 0xE000}
