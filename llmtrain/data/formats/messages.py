"""The ways in which people write down a dialogue -> messages, as chat templates take them.

Lists of turns, whose keys and speakers `roles` knows, with tool calls; strings with marked turns are `marked`, trees of
replies `trees`. `row_formats` says which field holds which.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from llmtrain.data.formats.faults import UnfitRow, kind, masked_quote
from llmtrain.data.formats.roles import ROLE_KEYS, content_key_of, is_caller, role_key_of, role_of, unknown_role
from llmtrain.data.formats.weights import MESSAGE_KEYS, message_weight, weights_of, without_weights
from llmtrain.data.sources.weight_values import WEIGHT
from llmtrain.data.thoughts import begins_with_thought

Message = Mapping[str, Any]
SHOWN_MESSAGES = 4
"""Messages of the first row that are shown."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""The keys of a message that `transformers` hands to templates as its reasoning."""
LEGACY_CALL = "function_call"
"""The key of a message that held its one call before OpenAI's `tool_calls`."""


@dataclass(frozen=True)
class Dialogue:
    """The messages of a row, before they are checked as a whole."""

    messages: Sequence[Message]
    num_prompt: int = 0  # messages[:num_prompt] are the prompt, where the row marks one
    tools: tuple[Mapping[str, Any], ...] = ()
    prompt_text: str | None = None  # the prompt where the row has it as one text with marked turns


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them: role, content, tool_calls, name, ..."""

    messages: tuple[Message, ...]
    num_prompt: int  # messages[:num_prompt] are the prompt, where the row marks one; 0: it marks none
    tools: tuple[Mapping[str, Any], ...]
    where: str  # file:line, for messages to the user
    num_bytes: int  # as UTF-8: of all strings of an instruction row, of an answer's whole dialogue as JSON
    weights: tuple[float, ...] = ()  # of each message's tokens in the loss; (): each has 1
    weight: float = 1.0  # of the whole row, by which those are multiplied
    prompt_text: str | None = None  # the prompt where the row has it as one text with marked turns

    def digest(self) -> bytes:
        """16 bytes that depend on the messages and tools alone."""
        content = json.dumps([self.messages, self.tools], sort_keys=True, default=str)
        return blake2b(content.encode(), digest_size=16).digest()


def conversation(dialogue: Dialogue, num_prompt: int, where: str, num_bytes: int, weight: float = 1.0) -> Conversation:
    """A dialogue in its one form, its weights separate from its messages."""
    return Conversation(
        messages=without_weights(dialogue.messages),
        num_prompt=num_prompt,
        tools=dialogue.tools,
        where=where,
        num_bytes=num_bytes,
        weights=weights_of(dialogue.messages),
        weight=weight,
        prompt_text=dialogue.prompt_text,
    )


def answered(dialogue: Dialogue, num_prompt: int, where: str) -> Conversation:
    """A dialogue whose messages from `num_prompt` on are an answer; raises UnicodeEncodeError, RecursionError."""
    messages = without_weights(dialogue.messages)
    num_bytes = len(json.dumps([messages, dialogue.tools], ensure_ascii=False).encode())
    return conversation(dialogue, num_prompt, where, num_bytes)


def first_question(messages: Sequence[Message]) -> str:
    """The first human turn: what all answers to the same question have in common."""
    asked = next((message for message in messages if message["role"] == "user"), messages[0])
    return str(asked["content"]).strip()


def asks_nothing(messages: Sequence[Message]) -> bool:
    """Whether all that is said to the model before it answers is blank."""
    return not any(message["role"] != "assistant" and str(message["content"]).strip() for message in messages)


def text_message(role: str, content: Any, place: str) -> Message:
    """One message of text.

    Raises UnfitRow if the content is not text, or an assistant's is empty.
    """
    return _message(role, content, {}, place)


def turn_messages(turns: Any, place: str) -> list[Message]:
    """A list of turns, keeping what else they hold.

    Raises UnfitRow for what is not a turn, an unknown role, and content or tool calls that cannot be used.
    """
    if not isinstance(turns, list):
        raise UnfitRow("not a list of messages", f"{place} holds {kind(turns)}, not a list of messages")
    if not turns:
        raise UnfitRow("empty conversation", f"{place} holds no message")
    return [turn_message(turn, f"message {number} of {place}") for number, turn in enumerate(turns)]


def turn_message(turn: Any, place: str) -> Message:
    """One turn, whatever its keys and its speaker are called; raises UnfitRow as `turn_messages` does."""
    if not isinstance(turn, Mapping):
        raise UnfitRow("not a message", f"{place} is {kind(turn)}, not an object with role and content")
    role_key, content_key = role_key_of(turn), content_key_of(turn)
    if role_key is None:
        if (named := next((key for key in ROLE_KEYS if key in turn), None)) is not None:
            raise UnfitRow("not a message", f"{place}: {named!r} is null, so nobody speaks")
        names = ", ".join(map(repr, turn)) or "nothing"
        raise UnfitRow(
            "not a message",
            f"{place} has neither role and content nor from and value, but {names}; name them by the source's role_key "
            "and content_key",
        )
    speaker, content = turn[role_key], None if content_key is None else turn[content_key]
    used = {role_key, content_key, *MESSAGE_KEYS}
    rest = {key: value for key, value in turn.items() if key not in used and value is not None}
    role = "assistant" if is_caller(speaker) else role_of(speaker)
    if role is None:
        raise unknown_role(speaker, place)
    weight = message_weight(turn, role, place)
    rest |= {WEIGHT: weight} if weight != 1 else {}
    if is_caller(speaker) and "tool_calls" not in rest:
        return _message("assistant", "", {**rest, "tool_calls": content}, place)
    return _message(role, content, rest, place)


def tool_list(tools: Any, place: str) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row: a list, or JSON of one, of functions, each wrapped as `{"type": "function", ...}`.

    Raises UnfitRow for anything else.
    """
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return ()
    listed = _parsed(tools, place)
    if not isinstance(listed, list) or not all(isinstance(tool, Mapping) for tool in listed):
        raise UnfitRow("malformed tools", f"{place} is not a list of objects")
    return tuple(tool if "function" in tool or "name" not in tool else _as_function(tool) for tool in listed)


def shown(messages: Sequence[Message]) -> str:
    """Messages on one line, shortened: `user "2 + 2?" -> assistant "4"`."""
    parts = []
    for message in messages[:SHOWN_MESSAGES]:
        if message["content"] or "tool_calls" not in message:
            parts.append(f"{message['role']} {masked_quote(message['content'])}")
        else:
            names = ", ".join(call["function"]["name"] for call in message["tool_calls"])
            parts.append(f"{message['role']} calls {names}")
    if len(messages) > SHOWN_MESSAGES:
        parts.append(f"{len(messages) - SHOWN_MESSAGES} more")
    return " -> ".join(parts)


def _message(role: str, content: Any, rest: Mapping[str, Any], place: str) -> Message:
    """A message in its one form: text content, tool calls as objects, no key without a value."""
    text = _joined(content, place)
    extras = dict(rest)
    calls = _tool_calls(extras.pop("tool_calls", None), place)
    legacy = extras.pop(LEGACY_CALL, None) if role == "assistant" else None
    if calls and legacy is not None:
        raise UnfitRow("malformed tool call", f"{place} has both tool_calls and {LEGACY_CALL}: leave one of them out")
    calls = calls or _tool_calls(legacy, place)
    key = next((name for name in REASONING if extras.get(name)), None)
    if role == "assistant" and key is not None and begins_with_thought(text):
        raise UnfitRow(
            "two thoughts", f"{place} has a thought in {key} and another in its content: leave one of them out"
        )
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
        raise UnfitRow("content is not a string", f"{place}: the content is {kind(content)}, not a string")
    texts = []
    for part in content:
        part_type = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or part_type != "text" or not isinstance(part.get("text"), str):
            named = f"a part of type {part_type!r}" if part_type is not None else kind(part)
            raise UnfitRow("content is not text", f"{place}: the content holds {named}; parts of type 'text' are read")
        texts.append(part["text"])
    return "".join(texts)


def _tool_calls(calls: Any, place: str) -> list[Mapping[str, Any]]:
    """Tool calls as `{"type": "function", "function": {"name": ..., "arguments": ...}}`.

    Arguments are an object, or one as JSON in a string, as OpenAI writes them: the row's own text, which `rendering`
    hands to the chat template as it wants it.
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
    arguments = function.get("arguments") or {}
    parsed = _parsed(arguments, f"{place}, the arguments of {function['name']}")
    if not isinstance(parsed, Mapping):
        raise UnfitRow(
            "malformed tool call",
            f"{place}: the arguments of {function['name']} are {kind(parsed)}, not an object",
        )
    kept = {key: value for key, value in wrapped.items() if value is not None}
    return {**kept, "type": "function", "function": {**function, "arguments": arguments}}


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
