"""A prompt in a field beside whole dialogues, which have their own: the two must be the same, as one is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmtrain.data.formats.faults import UnfitRow, masked_quote
from llmtrain.data.formats.marked import marked_messages, marking_of
from llmtrain.data.formats.roles import begins_with_answer, content_key_of, is_turns

CHOICE_BASES = ("prompt", "question", "messages", "conversations", "instruction")
"""Fields that hold what a preference row's two answers answer."""


def require_same_prompt(fields: Mapping[str, Any], chosen: Sequence[Mapping[str, Any]]) -> None:
    """Raises UnfitRow if a field holds another prompt than the dialogue of `chosen`, which is taken.

    The field may hold less than the dialogue: `{"prompt": "2 + 2?", "chosen": [system, user, assistant]}`.
    """
    taken = " ".join(_words(message.get("content")) for message in chosen[:-1])
    for name in CHOICE_BASES:
        lost = next((text for text in _texts(fields.get(name)) if _words(text) not in taken), None)
        if lost is not None:
            raise UnfitRow(
                "two prompts",
                f"{name!r} holds {masked_quote(lost)}, which is not in the dialogue of 'chosen', whose first message "
                f"is {masked_quote(str(chosen[0].get('content')))}: take one of the two out, or add it there",
            )


def _texts(value: Any) -> list[str]:
    """What is asked in a field: its text, or its messages but for answers."""
    if isinstance(value, str):
        marking = marking_of(value)
        if marking is None:
            return [value]
        return [str(turn["content"]) for turn in marked_messages(value, marking, "the prompt", open_end=True)]
    if not is_turns(value):
        return []
    asked = [turn for turn in value if isinstance(turn, Mapping) and not begins_with_answer(turn)]
    contents = [turn.get(content_key_of(turn) or "") for turn in asked]
    return [content for content in contents if isinstance(content, str)]


def _words(text: Any) -> str:
    """A text with single spaces between its words."""
    return " ".join(text.split()) if isinstance(text, str) else ""
