"""The ways in which people write down a dialogue -> messages, as chat templates take them.

Lists of turns (OpenAI's `role` and `content`, ShareGPT's `from` and `value`), strings with marked turns
(HH-RLHF, Guanaco), trees of replies (OpenAssistant); `instructions` says which field holds which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

Message = Mapping[str, Any]
SHOWN_MESSAGES = 4
"""Messages of the first row that are shown."""

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""What rows call a speaker -> what chat templates call it."""
FUNCTION_CALL = "function_call"
"""The speaker of a ShareGPT turn that holds an assistant's tool calls as JSON."""

MARKS = {
    "HH-RLHF dialogue": re.compile(r"\n\n(Human|Assistant):"),
    "### Human dialogue": re.compile(r"(?:^|\s)### (Human|Assistant):"),
}
"""Name of a marking -> what it writes before each turn."""


class UnfitRow(ValueError):
    """A row that is wrong: `reason`, one of a few, for counting; the text names what is wrong and where in the row."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class UnwantedRow(Exception):
    """A row that is valid, but not to be trained on: `reason`, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownFormat(ValueError):
    """A row in no format that is read; the text is one line that starts with file:line."""


@dataclass(frozen=True)
class Dialogue:
    """The messages of a row, before they are checked as a whole."""

    messages: Sequence[Message]
    num_prompt: int = 0  # messages[:num_prompt] are the prompt, where the row marks one
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them: role, content, tool_calls, name, ..."""

    messages: tuple[Message, ...]
    num_prompt: int  # messages[:num_prompt] are the prompt, where the row marks one; 0: it marks none
    tools: tuple[Mapping[str, Any], ...]
    where: str  # file:line, for messages to the user
    num_bytes: int  # as UTF-8: of all strings of an instruction row, of an answer's whole dialogue as JSON

    def digest(self) -> bytes:
        """16 bytes that depend on the messages and tools alone."""
        content = json.dumps([self.messages, self.tools], sort_keys=True, default=str)
        return blake2b(content.encode(), digest_size=16).digest()


def answered(dialogue: Dialogue, num_prompt: int, where: str) -> Conversation:
    """A dialogue whose messages from `num_prompt` on are an answer; raises UnicodeEncodeError, RecursionError."""
    num_bytes = len(json.dumps([dialogue.messages, dialogue.tools], ensure_ascii=False).encode())
    return Conversation(tuple(dialogue.messages), num_prompt, dialogue.tools, where, num_bytes)


def first_question(messages: Sequence[Message]) -> str:
    """The first human turn: what all answers to the same question have in common."""
    asked = next((message for message in messages if message["role"] == "user"), messages[0])
    return str(asked["content"]).strip()


def text_message(role: str, content: Any, place: str) -> Message:
    """One message of text.

    Raises UnfitRow if the content is not text, or an assistant's is empty.
    """
    return _message(role, content, {}, place)


def turn_messages(turns: Any, place: str) -> list[Message]:
    """A list of turns, each with role and content or with from and value, keeping what else they hold.

    Raises UnfitRow for what is not a turn, an unknown role, and content or tool calls that cannot be used.
    """
    if not isinstance(turns, list):
        raise UnfitRow("not a list of messages", f"{place} holds {_kind(turns)}, not a list of messages")
    if not turns:
        raise UnfitRow("empty conversation", f"{place} holds no message")
    return [turn_message(turn, f"message {number} of {place}") for number, turn in enumerate(turns)]


def turn_message(turn: Any, place: str) -> Message:
    """One turn, with role and content or with from and value; raises UnfitRow as `turn_messages` does."""
    if not isinstance(turn, Mapping):
        raise UnfitRow("not a message", f"{place} is {_kind(turn)}, not an object with role and content")
    if turn.get("role") is not None:
        role_key, content_key = "role", "content"
    elif turn.get("from") is not None:
        role_key, content_key = "from", "value"
    else:
        names = ", ".join(map(repr, turn)) or "nothing"
        raise UnfitRow("not a message", f"{place} has neither role and content nor from and value, but {names}")
    role, content = turn[role_key], turn.get(content_key)
    rest = {key: value for key, value in turn.items() if key not in (role_key, content_key) and value is not None}
    if role == FUNCTION_CALL:
        return _message("assistant", "", {**rest, "tool_calls": content}, place)
    if not isinstance(role, str) or role not in ROLES:
        raise UnfitRow("unknown role", f"{place} has the role {role!r}, which is none of {', '.join(ROLES)}")
    return _message(ROLES[role], content, rest, place)


def tool_list(tools: Any, place: str) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row: a list, or JSON of one, of functions, each wrapped as `{"type": "function", ...}`.

    Raises UnfitRow for anything else.
    """
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return ()
    listed = _parsed(tools, place)
    if not isinstance(listed, list) or not all(isinstance(tool, Mapping) for tool in listed):
        raise UnfitRow("malformed tools", f"{place} is not a list of objects")
    functions = [tool if "function" in tool or "name" not in tool else _as_function(tool) for tool in listed]
    return tuple(_without_nulls(tool) for tool in functions)


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
        shown = shortened(text) if isinstance(text, str) else _kind(text)
        raise UnfitRow("not a marked dialogue", f"{place} is not a {marking}: it begins with {shown}")
    pieces = MARKS[marking].split(text)[1:]
    turns = [(speaker, content.strip()) for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)]
    if open_end and turns[-1] == ("Assistant", ""):
        turns.pop()
    return [
        text_message(ROLES[speaker.lower()], content, f"message {number} of {place}")
        for number, (speaker, content) in enumerate(turns)
    ]


def best_path(root: Any, place: str) -> list[Message]:
    """The best replies of an OpenAssistant tree, from its root to the last one by an assistant.

    Of several replies the one of lowest `rank` is taken, one without a rank after those that have one, the
    first of equals; deleted ones never. Raises UnwantedRow where no assistant has replied, UnfitRow for a
    node that is not a message (Köpf et al. 2023).
    """
    messages: list[Message] = []
    node = root
    while node is not None:
        here = f"reply {len(messages)} of {place}" if messages else place
        if not isinstance(node, Mapping) or not isinstance(node.get("replies") or [], list):
            raise UnfitRow("not a message", f"{here} is not an object with role, text and a list of replies")
        replies = [reply for reply in node.get("replies") or [] if isinstance(reply, Mapping)]
        messages.append(turn_message({"role": node.get("role"), "content": node.get("text")}, here))
        node = min((reply for reply in replies if not reply.get("deleted")), key=_rank, default=None)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise UnwantedRow("no assistant turn")
    return messages


def shortened(text: str, max_chars: int = 48) -> str:
    """A string in quotes on one line, its end left out where it is long."""
    line = " ".join(text[: 8 * max_chars].split())
    return json.dumps(line if len(line) <= max_chars else line[: max_chars - 3] + "...", ensure_ascii=False)


def shown(messages: Sequence[Message]) -> str:
    """Messages on one line, shortened: `user "2 + 2?" -> assistant "4"`."""
    parts = []
    for message in messages[:SHOWN_MESSAGES]:
        if message["content"] or "tool_calls" not in message:
            parts.append(f"{message['role']} {shortened(message['content'])}")
        else:
            names = ", ".join(call["function"]["name"] for call in message["tool_calls"])
            parts.append(f"{message['role']} calls {names}")
    if len(messages) > SHOWN_MESSAGES:
        parts.append(f"{len(messages) - SHOWN_MESSAGES} more")
    return " -> ".join(parts)


def _rank(reply: Mapping[str, Any]) -> tuple[bool, float]:
    rank = reply.get("rank")
    return (False, rank) if isinstance(rank, int | float) else (True, 0)


def _message(role: str, content: Any, rest: Mapping[str, Any], place: str) -> Message:
    """A message in its one form: text content, tool calls as objects, no key without a value."""
    text = _joined(content, place)
    extras = dict(rest)
    calls = _tool_calls(extras.pop("tool_calls", None), place)
    if calls:
        extras["tool_calls"] = calls
    elif content is None:
        raise UnfitRow("message without content", f"{place} has neither content nor tool calls")
    elif role == "assistant" and not text.strip():
        raise UnfitRow("message without content", f"{place}: the assistant's message is empty")
    return {"role": role, "content": text, **extras}


def _joined(content: Any, place: str) -> str:
    """Content as one string; the text parts of a list follow each other directly."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UnfitRow("content is not a string", f"{place}: the content is {_kind(content)}, not a string")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind != "text" or not isinstance(part.get("text"), str):
            named = f"a part of type {kind!r}" if kind is not None else _kind(part)
            raise UnfitRow("content is not text", f"{place}: the content holds {named}; parts of type 'text' are read")
        texts.append(part["text"])
    return "".join(texts)


def _tool_calls(calls: Any, place: str) -> list[Mapping[str, Any]]:
    """Tool calls as `{"type": "function", "function": {"name": ..., "arguments": {...}}}`, whose arguments are objects.

    OpenAI writes arguments as JSON in a string; most chat templates write them as JSON themselves, and would
    so quote them twice.
    """
    if calls is None:
        return []
    listed = _parsed(calls, f"{place}, the tool call")
    return [_tool_call(call, place) for call in (listed if isinstance(listed, list) else [listed])]


def _tool_call(call: Any, place: str) -> Mapping[str, Any]:
    wrapped = call if isinstance(call, Mapping) and "function" in call else _as_function(call)
    function = wrapped["function"]
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnfitRow("malformed tool call", f"{place}: a tool call needs the name of a function")
    arguments = function.get("arguments")
    arguments = _parsed(arguments or "{}", f"{place}, the arguments of {function['name']}")
    if not isinstance(arguments, Mapping):
        raise UnfitRow(
            "malformed tool call",
            f"{place}: the arguments of {function['name']} are {_kind(arguments)}, not an object",
        )
    return _without_nulls({**wrapped, "type": "function", "function": {**function, "arguments": arguments}})


def _as_function(function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _parsed(value: Any, place: str) -> Any:
    """A value as it is, or the tree that a string holds as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise UnfitRow("malformed JSON", f"malformed JSON in {place} ({error.msg} at character {error.pos})") from None
    except RecursionError:
        raise UnfitRow("malformed JSON", f"malformed JSON in {place} (nested too deep)") from None


def _without_nulls(tree: Any) -> Any:
    """A tree without keys that have no value: Arrow gives every object of a column the keys of all of them."""
    if isinstance(tree, Mapping):
        return {key: _without_nulls(value) for key, value in tree.items() if value is not None}
    return [_without_nulls(value) for value in tree] if isinstance(tree, list) else tree


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
