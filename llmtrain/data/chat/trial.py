"""The plain chats that every template is tried on, before any row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llmtrain.data.formats.messages import Message
from llmtrain.data.rendering import CALL_ID, PROBE, QUESTION, tool_named


class Trial(NamedTuple):
    r"""A template's text of a plain chat, in four states; PROBE is its answer.

    question  <|im_start|>user\nquestion<|im_end|>\n
    prompt    ... and <|im_start|>assistant\n
    answer    ... and zqx7<|im_end|>\n
    followed  ... and <|im_start|>user\nquestion<|im_end|>\n
    """

    prompt: str  # a question, ready for its answer
    question: str  # the question alone
    answer: str  # with its answer
    followed: str  # and with another question after it


CALLING: tuple[Message, ...] = (
    QUESTION,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": CALL_ID, "type": "function", "function": {"name": PROBE, "arguments": {"x": "y"}}}],
    },
)
RESULT_OF_CALL: tuple[Message, ...] = (
    *CALLING,
    {"role": "tool", "tool_call_id": CALL_ID, "name": PROBE, "content": "result"},
)
REPLY: Message = {"role": "assistant", "content": "reply"}
SYSTEM: Message = {"role": "system", "content": "system"}

WRITTEN: Sequence[tuple[Sequence[Message], Sequence[Mapping[str, Any]]]] = (
    ((*RESULT_OF_CALL, REPLY), ()),
    ((QUESTION, REPLY), (tool_named("f"),)),
    ((SYSTEM, QUESTION, REPLY), ()),
    (({**SYSTEM, "role": "developer"}, QUESTION, REPLY), ()),
    ((QUESTION, {**REPLY, "reasoning_content": "thought"}), ()),
)
"""Messages in which a template writes all its tokens."""
