"""Rows for the tests of chat templates, and what becomes of them, in a form that can be written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded, LossOn
from llmtrain.data.formats.instructions import Example
from llmtrain.data.formats.messages import Conversation

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def conversation(*messages: str | Mapping[str, Any], num_prompt: int = 0, tools: Sequence[Any] = ()) -> Conversation:
    """A conversation of `u: text`, `a: text`, ..., or of whole messages."""
    whole = [
        {"role": ROLES[message[0]], "content": message[3:]} if isinstance(message, str) else message
        for message in messages
    ]
    return Conversation(tuple(whole), num_prompt, tuple(tools), "rows.jsonl:7", 0)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """An answer that calls a tool."""
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def expected(text: str) -> list[tuple[str, bool]]:
    r"""A document written down: lines of `-` tokens that are given and `+` tokens that are trained, between bars.

    `\n` is a break; `\s` a space, at the end of a line.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    return [
        (token.replace("\\n", "\n").replace("\\s", " "), line.lstrip()[0] == "+")
        for line in lines
        for token in line.lstrip()[2:].split("¦")
    ]


def tokens(tokenizer: PreTrainedTokenizerFast, document: Encoded) -> list[tuple[str, bool]]:
    """A document's tokens as text, and whether each is trained."""
    pairs = zip(document.input_ids.tolist(), document.trained.tolist(), strict=True)
    return [(tokenizer.decode([token]), trained) for token, trained in pairs]


def documents(
    tokenizer: PreTrainedTokenizerFast, row: Example, *, loss_on: LossOn = "assistant", plain: bool = False
) -> list[Encoded]:
    """What a row becomes."""
    (found,) = ChatEncoder(tokenizer, plain=plain, loss_on=loss_on).encode([row])
    assert not isinstance(found, BadExample), found
    return found


def fault(
    tokenizer: PreTrainedTokenizerFast, row: Example, *, loss_on: LossOn = "assistant", plain: bool = False
) -> BadExample:
    """Why a row becomes nothing: one line that begins with its place."""
    (found,) = ChatEncoder(tokenizer, plain=plain, loss_on=loss_on).encode([row])
    assert isinstance(found, BadExample)
    assert str(found).startswith("rows.jsonl:7: ") and "\n" not in str(found)
    return found


def trained_text(tokenizer: PreTrainedTokenizerFast, document: Encoded) -> str:
    """The text of the tokens that are trained."""
    return tokenizer.decode(document.input_ids[document.trained])
