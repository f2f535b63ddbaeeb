r"""Answers after a prompt that has begun them, as those of models that always think: `<|Assistant|><think>\n`.

A template writes the same turn differently once it is past: without its thought, or with an empty one in one piece.
What follows the opening is then put together here.

    prompt  <|User|>2 + 2?<|Assistant|><think>\n
    past    <|User|>2 + 2?<|Assistant|>4<|end|>
    answer  Easy.\n</think>\n\n4<|end|>              of a message with that thought
            \n</think>\n\n4<|end|>                   of one without
"""

from __future__ import annotations

import re
from dataclasses import replace

from llmtrain.data.chat.turn import Turn
from llmtrain.data.formats.messages import REASONING, Message
from llmtrain.data.thoughts import thoughts

TAG = re.compile(r"<(\w+)>")
LAST_TAG = re.compile(r"<\w+>\s*\Z")
EMPTY_AND_OVER = re.compile(r"<(\w+)>\s*</\1>\s*\Z")
END = "</think>"
EMPTY_THOUGHT = "an answer without a thought, after a prompt that opens one: an empty thought is trained"


def opening_of(prompt: str, answered: str) -> str:
    """What a prompt has of an answer that is not there once it is given: a tag whole, where it ends with one."""
    same = num_equal(prompt, answered)
    if same == len(prompt):
        return ""
    tag = LAST_TAG.search(prompt)
    return prompt[min(same, tag.start()) if tag else same :]


def num_equal(first: str, second: str) -> int:
    """How many characters two strings begin with in common."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


def closes(opening: str) -> str | None:
    """What ends the thought that an opening begins: `</think>`; None: it is not a tag."""
    tag = TAG.fullmatch(opening.strip())
    return None if tag is None else f"</{tag.group(1)}>"


def after_opening(message: Message, opening: str, written: str) -> tuple[str, bool] | None:
    """What a model writes after an opening that its prompt has, and whether an empty thought was assumed.

    `written` is what the template writes of the message once it is past. None if neither the message nor what is
    written of it goes on from the opening.
    """
    begun, content = opening.strip(), message.get("content")
    if not begun:
        return None
    if written.lstrip().startswith(begun):
        return written.lstrip().removeprefix(begun).lstrip("\r\n"), not _thought(message)
    if isinstance(content, str) and begun in content:
        rest = content.lstrip().removeprefix(begun).lstrip("\r\n") if content.lstrip().startswith(begun) else None
        goes_on = (text for text in (rest, rest.rstrip()) if text.endswith(written.lstrip("\r\n"))) if rest else ()
        return next(((text, False) for text in goes_on), None)
    end = closes(opening)
    if end is None:
        return None
    thought = _thought(message)
    return f"{thought}\n{end}\n\n" + written.lstrip("\r\n"), not thought


def without_thoughts(turn: Turn, message: Message) -> Turn:
    r"""A turn whose thoughts are given, not trained: of `<think>\nEasy.\n</think>\n\n4`, `\n</think>\n\n4` is.

    One without any is the same turn.
    """
    thought = _thought(message)
    spans = [(turn.start, _end_of(thought, turn))] if thought else _inline_thoughts(turn)
    trained = turn.trained
    for start, end in spans:
        pieces = [piece for first, last in trained for piece in ((first, min(last, start)), (max(first, end), last))]
        trained = tuple((first, last) for first, last in pieces if first < last)
    return replace(turn, trained=trained) if spans else turn


def ends_empty_thought(prompt: str) -> bool:
    r"""Whether a prompt ends with a thought that is empty and over: `<think>\n\n</think>\n\n`."""
    return EMPTY_AND_OVER.search(prompt) is not None


def has_thought(message: Message) -> bool:
    """Whether an answer has a thought, in a key of its own or in its text."""
    return bool(_thought(message)) or any(thoughts(str(message.get("content") or "")))


def _end_of(thought: str, turn: Turn) -> int:
    """Where a thought ends in a turn: before its closing tag, or else as a word (`th` of `<think>` is none)."""
    tag = turn.text.find(END, turn.start)
    if tag >= 0 and (at := turn.text.rfind(thought, turn.start, tag)) >= 0:
        return at + len(thought)
    alone = re.compile(rf"(?<!\w){re.escape(thought)}(?!\w)").search(turn.text, turn.start)
    at = turn.text.find(thought, turn.start) if alone is None else alone.start()
    return at + len(thought) if at >= 0 else turn.start


def _inline_thoughts(turn: Turn) -> list[tuple[int, int]]:
    r"""Where thoughts are in the text of a turn, white space at the end of each left to what ends it."""
    found = thoughts(turn.text, turn.start)
    return [(start, start + len(turn.text[start:end].rstrip())) for start, end in found]


def _thought(message: Message) -> str:
    return next((str(message[name]).strip() for name in REASONING if message.get(name)), "")
