"""Dialogues in one string, whose turns are marked (HH-RLHF, Guanaco) -> messages."""

from __future__ import annotations

import re
from typing import Any

from llmtrain.data.formats.faults import UnfitRow, kind, masked_quote
from llmtrain.data.formats.messages import Message, text_message
from llmtrain.data.formats.roles import ROLES

MARKS = {
    "HH-RLHF dialogue": re.compile(r"\n\n(Human|Assistant):"),
    "### Human dialogue": re.compile(r"(?:^|\s)### (Human|Assistant):"),
}
"""Name of a marking -> what it writes before each turn."""


def marking_of(text: Any) -> str | None:
    """The name in MARKS of the marks that a string begins with; None: it is not a marked dialogue."""
    if not isinstance(text, str):
        return None
    if text.startswith("\n\nHuman:"):
        return "HH-RLHF dialogue"
    return "### Human dialogue" if text.lstrip().startswith("### Human:") else None


def marked_messages(text: Any, marking: str, place: str, *, open_end: bool = False) -> list[Message]:
    """A string of marked turns; with `open_end` a last answer without text is left out.

    Raises UnfitRow for a string that is not so marked, and for an answer without text.
    """
    if marking_of(text) != marking:
        shown = masked_quote(text) if isinstance(text, str) else kind(text)
        raise UnfitRow("not a marked dialogue", f"{place} is not a {marking}: it begins with {shown}")
    pieces = MARKS[marking].split(text)[1:]
    turns = [(speaker, content.strip()) for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)]
    if open_end and turns[-1] == ("Assistant", ""):
        turns.pop()
    return [
        text_message(ROLES[speaker.lower()], content, f"message {number} of {place}")
        for number, (speaker, content) in enumerate(turns)
    ]
