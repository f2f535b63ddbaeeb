"""What a template leaves out of rows of one shape, found by rendering that shape with marked texts.

A shape is all of a conversation but its words: who speaks, with calls, thoughts or control tokens. Where every message
of a shape holds a mark of its own, whatever the template drops is a mark that its text lacks:

    system zq1x, user zq2x, system zq3x, user zq4x, assistant zq5x     SmolLM3 writes no zq3x: "system messages"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from llmtrain.data.chat.speaker_names import NAME, reads_speaker_names
from llmtrain.data.formats.messages import REASONING, Message
from llmtrain.data.rendering import tool_named

WRITTEN_ELSEWHERE = frozenset(("role", "content", "tool_calls", "tool_call_id", "id", *REASONING))
"""Keys of messages that are tried by marks, or that only tie a result to its call."""
READ = re.compile(r"""\.\s*(\w+)|["'](\w+)["']""")
MAX_ALIKE = 2
"""Rounds of one shape after each other that are tried: more of them are written alike."""


class MessageShape(NamedTuple):
    """A message without its words."""

    role: str
    content: tuple[str, ...]  # control tokens as they are, TEXT for what is between them
    has_thought: bool
    calls: tuple[bool, ...]  # of each call, whether it has arguments
    has_id: bool
    has_name: bool


Shape = tuple[tuple[MessageShape, ...], bool]
"""The messages, and whether there are tools."""

TEXT = ""


@dataclass(frozen=True)
class Mark:
    """A text that the template must write."""

    text: str
    part: str  # what is left out where it does not, in words
    place: int  # of its message
    is_thought: bool = False


@dataclass(frozen=True)
class Probe:
    """A conversation of marks."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    marks: tuple[Mark, ...]

    def missing(self, text: str) -> Mark | None:
        """The first mark that a text lacks; thoughts must be in that of the last message alone."""
        last = len(self.messages) - 1
        return next(
            (m for m in self.marks if m.text not in text and not (m.is_thought and m.place < last)),
            None,
        )

    def missing_before_answer(self, prompt: str) -> Mark | None:
        """The first mark of what comes before the last message that its prompt lacks, thoughts aside."""
        last = len(self.messages) - 1
        return next((m for m in self.marks if m.text not in prompt and not m.is_thought and m.place < last), None)


def shape_of(messages: Sequence[MessageShape], has_tools: bool) -> Shape:
    """The shape of a conversation, with at most MAX_ALIKE rounds alike after each other."""
    rounds: list[list[MessageShape]] = []
    for message in messages:
        if not rounds or message.role == "user":
            rounds.append([])
        rounds[-1].append(message)
    kept = [shape for _, alike in groupby(rounds) for shape in list(alike)[-MAX_ALIKE:]]
    return tuple(shape for each in kept for shape in each), has_tools


def probe_of(shape: Shape, prefix: str = "zq") -> Probe:
    """A conversation of this shape, whose marks begin with `prefix`."""
    messages, has_tools = shape
    marks: list[Mark] = []
    made: list[Message] = []
    pending: list[tuple[str, str]] = []  # id and name of the calls that no result has answered
    for place, message in enumerate(messages):
        made.append(_marked(message, place, prefix, marks, pending))
    tools: tuple[Mapping[str, Any], ...] = ()
    if has_tools:
        name = f"{prefix}toolx"
        marks.append(Mark(name, "tools", 0))
        tools = (tool_named(name),)
    return Probe(tuple(made), tools, tuple(marks))


def message_shape(message: Message, token: re.Pattern[str]) -> MessageShape:
    """The shape of a message; `token` finds the control tokens in its text."""
    content = message.get("content")
    return MessageShape(
        role=message["role"],
        content=_pieces(content, token) if isinstance(content, str) else (),
        has_thought=any(message.get(name) for name in REASONING),
        calls=tuple(
            call["function"].get("arguments") not in ({}, "{}", None) for call in message.get("tool_calls", ())
        ),
        has_id=_has_id(message),
        has_name=bool(message.get("name")),
    )


def unread_keys(messages: Sequence[Message], sources: Iterable[str]) -> tuple[str, ...]:
    """A note for each key of messages that no chat template names, so that what it holds is in no text.

    A tool's result may have a name, as its call has it already.
    """
    keys = {
        key
        for message in messages
        for key in message
        if key not in WRITTEN_ELSEWHERE and not (key == NAME and message["role"] == "tool")
    }
    words = frozenset().union(*map(_read_keys, sources)) if keys else frozenset()
    return tuple(f"the chat template does not read {key!r} of messages" for key in sorted(keys - words))


@lru_cache(maxsize=8)
def _read_keys(source: str) -> frozenset[str]:
    """What a template may read of an object: `.name`, `["name"]`, `"name" in`, `.get("name")`."""
    found = frozenset(name for names in READ.findall(source) for name in names if name)
    return found if reads_speaker_names(source) else found - {NAME}


def _has_id(message: Message) -> bool:
    calls = message.get("tool_calls") or ()
    return all(call.get("id") for call in calls) if calls else bool(message.get("tool_call_id"))


def _pieces(content: str, token: re.Pattern[str]) -> tuple[str, ...]:
    """`<think>\\nEasy.\\n</think>\\n\\n4` as `<think>`, TEXT, `</think>`, TEXT."""
    pieces: list[str] = []
    end = 0
    for found in token.finditer(content):
        pieces += [TEXT] if content[end : found.start()].strip() else []
        pieces.append(found.group())
        end = found.end()
    return (*pieces, TEXT) if content[end:].strip() else tuple(pieces)


def _marked(
    shape: MessageShape, place: int, prefix: str, marks: list[Mark], pending: list[tuple[str, str]]
) -> dict[str, Any]:
    """A message of a shape, its marks added to `marks`, its calls to `pending`."""

    def mark(part: str, *, is_thought: bool = False) -> str:
        text = f"{prefix}{len(marks)}x"
        marks.append(Mark(text, part, place, is_thought))
        return text

    is_answer = shape.role == "assistant"
    part = "text beside tool calls" if shape.calls else f"{shape.role} messages"
    thought_ends = max((i for i, piece in enumerate(shape.content) if piece == "</think>"), default=-1)
    texts = []
    for i, piece in enumerate(shape.content):
        is_thought = is_answer and i < thought_ends
        texts.append(piece if piece != TEXT else mark("reasoning" if is_thought else part, is_thought=is_thought))
    message: dict[str, Any] = {"role": shape.role, "content": "\n".join(texts)}
    if shape.has_thought:
        message["reasoning_content"] = mark("reasoning", is_thought=True)
    if shape.calls:
        message["tool_calls"] = list(_calls(shape, place, mark, pending))
    elif shape.role == "tool":
        call_id, name = pending.pop(0) if pending else (f"call{place:05}", "f")
        message |= ({"tool_call_id": call_id} if shape.has_id else {}) | ({"name": name} if shape.has_name else {})
    elif shape.has_name:
        message["name"] = "someone"
    return message


def _calls(shape: MessageShape, place: int, mark: Any, pending: list[tuple[str, str]]) -> Iterator[Mapping[str, Any]]:
    for number, has_arguments in enumerate(shape.calls):
        name = mark("tool calls")
        arguments = {mark("tool calls"): mark("tool calls")} if has_arguments else {}
        call_id = f"call{place:03}{number:02}"  # Mistral's templates want 9 characters
        pending.append((call_id, name))
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        yield {"id": call_id, **call} if shape.has_id else call
