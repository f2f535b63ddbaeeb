"""Who speaks in a turn and what is said: the keys and the names that data sets use -> those of chat templates.

The tables come from public data sets: OpenAI's and TRL's messages, ShareGPT, Vicuna, OpenAssistant, Hermes, ToolBench,
Glaive, Llama 3 and Gemma logs. Names are compared without regard to case. A source maps others: `roles: {customer:
user}`, `role_key`, `content_key`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain.data.formats.faults import UnfitRow

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "gpt-4": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "ipython": "tool",
}
"""What rows call a speaker -> what chat templates call it."""
CALLERS = frozenset({"function_call", "function-call", "tool_call", "tool_calls"})
"""Speakers of turns that hold an assistant's tool calls as JSON."""
ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
"""Keys that may name the speaker of a turn, the first that has a value."""
CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
"""Keys that may hold what is said, the first that has a value."""


def role_of(name: Any) -> str | None:
    """What chat templates call a speaker; None: the name is not known."""
    return ROLES.get(name.strip().lower()) if isinstance(name, str) else None


def is_caller(name: Any) -> bool:
    """Whether a speaker's turns are tool calls."""
    return isinstance(name, str) and name.strip().lower() in CALLERS


def role_key_of(turn: Mapping[str, Any]) -> str | None:
    """The key of a turn that names its speaker; None: there is none."""
    return next((key for key in ROLE_KEYS if turn.get(key) is not None), None)


def content_key_of(turn: Mapping[str, Any]) -> str | None:
    """The key of a turn that holds what is said; None: there is none."""
    return next((key for key in CONTENT_KEYS if turn.get(key) is not None), None)


def is_turn(value: Any) -> bool:
    """Whether a value is an object that names a known speaker."""
    name = value[key] if isinstance(value, Mapping) and (key := role_key_of(value)) is not None else None
    return role_of(name) is not None or is_caller(name)


def speaker_of_row(row: Mapping[str, Any]) -> str | None:
    """Who says the `text` of a row that is one message of a conversation by itself; None: it is not one.

    An author or a sender is no such speaker: text of any kind has them.
    """
    if row.get("text") is None or "replies" in row:
        return None
    names = (row.get(key) for key in ("role", "from", "speaker"))
    return next((name for name in names if role_of(name) is not None or (name and "parent_id" in row)), None)


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns, as far as its first element shows."""
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and role_key_of(value[0]) is not None
    )


def begins_with_answer(turn: Any) -> bool:
    """Whether a turn is an assistant's."""
    key = role_key_of(turn)
    return key is not None and (role_of(turn[key]) == "assistant" or is_caller(turn[key]))


def unknown_role(name: Any, place: str) -> UnfitRow:
    """The fault of a turn whose speaker is not known."""
    shown = name if isinstance(name, str) and name.isidentifier() else repr(name)
    return UnfitRow(
        "unknown role",
        f"{place} has the role {name!r}, which is none of {', '.join(ROLES)}; say who speaks by the source's roles, "
        f"such as roles: {{{shown}: user}}",
    )
