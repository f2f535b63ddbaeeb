"""Text in which nothing is invisible: control characters and those that reorder or hide text become escapes.

A model's output or a file's name may hold them. A page or a terminal that shows them as they are can show something
else than what is there: ESC moves a terminal's cursor, U+202E reverses the text after it, tag characters hide words.
"""

from __future__ import annotations

import re

SHOWN_CHARS = 200
MESSAGE_CHARS = 8000
HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but not tab and newline
    "\u00ad\u034f\u061c\u070f\u115f\u1160\u17b4\u17b5\u180e\u2800\u3164\uffa0"  # soft hyphen, joiners, fillers
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # zero-width, line separators, bidirectional
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # surrogates, no characters
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # shorthand and music formats, tags
    "]"
)
"""U+200C and U+200D, which join letters and emoji, and the selectors of emoji stay: texts need them and they hide
nothing."""


def visible(text: str) -> str:
    r"""The text with what cannot be seen as `\x1b`, `\u202e` or `\U000e0041`; `\r\n` is a newline."""
    return HIDDEN.sub(_escape, text.replace("\r\n", "\n"))


def shortened(text: str) -> str:
    """A text for a message, cut if it is long."""
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def visible_line(text: str) -> str:
    r"""The same in one line: a newline is `\n`."""
    return visible(text).replace("\n", "\\n")


def visible_message(text: str) -> str:
    """The same for a message, which a name of a million letters would drown: cut, with how long it is."""
    line = visible_line(text[:MESSAGE_CHARS])
    return line if len(text) <= MESSAGE_CHARS else f"{line}... ({len(text):,} characters)"


def require_unicode(text: str, what: str) -> str:
    """The text. Raises ValueError if it holds half of a surrogate pair, as bytes that are no UTF-8 become."""
    if (half := re.search("[\ud800-\udfff]", text)) is not None:
        raise ValueError(f"{what} holds {visible(half[0])}, half a surrogate pair, which is not valid Unicode")
    return text


def visible_json(line: str) -> str:
    r"""JSON with what cannot be seen as JSON's own escapes, `\u001b` or `\udb40\udc41`: the same values, safe to `cat`.

    Nor does half of a surrogate pair, which UTF-8 cannot hold, end the writing.
    """
    return HIDDEN.sub(_json_escape, line)


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
