"""What a row asks: its `prompt`, or what comes before the last answer of a row in any format of `instructions`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

from llmtrain.config.data import Source
from llmtrain.data.formats.faults import UnfitRow
from llmtrain.data.formats.instructions import check_canonical, recognise, recognised_as
from llmtrain.data.formats.marked import marking_of
from llmtrain.data.formats.messages import Dialogue, shown, text_message
from llmtrain.data.formats.naming import Naming
from llmtrain.data.formats.read import FormatReader
from llmtrain.data.formats.row_formats import SYSTEMS, RowFormat, about, asked_side, with_extras
from llmtrain.data.formats.token_rows import TokenRow
from llmtrain.data.formats.trees import is_tree
from llmtrain.data.sources.rows import Fields, Row

PROMPT_FIELDS = ("prompt", "question", "query")


@dataclass(frozen=True)
class Asks:
    """How what a row asks is found, now that the source's first row is known."""

    name: str  # of the format, for the ledger
    described: str  # for messages
    convert: Callable[[Fields], Dialogue]  # of a row under canonical names; raises UnfitRow, UnwantedRow


@dataclass(frozen=True)
class Asked:
    """What a row asks, before any template."""

    dialogue: Dialogue
    where: str  # file:line, for messages to the user
    num_bytes: int  # of the messages, written as JSON

    def digest(self) -> bytes:
        """16 bytes that depend on the messages alone."""
        return blake2b(json.dumps(self.dialogue.messages, default=str).encode(), digest_size=16).digest()


def asks(names: Naming, row: Row) -> Asks:
    """By a field that holds prompts, else by the format of the row."""
    view = names.view(row.fields)
    # An OpenAssistant tree under `prompt` is a format of `row_formats`.
    name = next((name for name in PROMPT_FIELDS if view.get(name) and not is_tree(view[name])), None)
    note = names.note(row.fields)
    if name is None and not _has_system_alone(view):
        row_format = recognise(row, names)
        described = recognised_as(row_format, names)
        return Asks(row_format.name, _noted(described, note), partial(_before_the_answer, row_format))
    read = [name or "prompt", *(about(view, name) if name is not None else ())]
    fields = ", ".join(names.fields.get(each, each) for each in read)
    kind = "prompts" if name is None or marking_of(view[name]) is None else f"{marking_of(view[name])} prompts"
    return Asks("prompt", _noted(f"{kind} (field {fields})", note), partial(_asked, name or "prompt"))


def asked_reader(source: Source) -> Callable[[Row], FormatReader[Asked]]:
    """How the rows of a source are read whose first row is given. Raises ValueError for unknown names in `fields`."""
    check_canonical(source.fields, source.path)
    return partial(_reader, Naming.of(source))


def _reader(names: Naming, row: Row) -> FormatReader[Asked]:
    how = asks(names, row)

    def convert(row: Row) -> list[Asked]:
        dialogue = how.convert(names.view(row.fields))
        num_bytes = len(json.dumps(dialogue.messages, ensure_ascii=False, default=str).encode())
        return [Asked(dialogue, row.where, num_bytes)]

    return FormatReader(
        how.name, convert, lambda first: f"{how.described}; the first: {shown(first.dialogue.messages)}"
    )


def _asked(name: str, row: Fields) -> Dialogue:
    """The prompt that a field holds, with the row's system prompt and tools. Raises UnfitRow.

    A prompt that ends with an assistant's message is the beginning of the answer, which the response continues.
    """
    if not row.get(name):
        if not _has_system_alone(row):
            raise UnfitRow("no prompt", f"{name!r} is missing or empty")
        return with_extras(row, [], 0)
    side = asked_side(row, name)
    if any(call for message in side.messages[-1:] for call in message.get("tool_calls") or ()):
        raise UnfitRow("no prompt", f"{name!r} ends with a call of tools, which no response continues: leave it out")
    return with_extras(row, side.messages, 0, side.text)


def _has_system_alone(row: Fields) -> bool:
    """Whether a row asks nothing and has a system prompt, after which the model speaks first."""
    has_system = any(isinstance(row.get(name), str) and row[name].strip() for name in SYSTEMS)
    return (
        has_system and any(name in row for name in PROMPT_FIELDS) and not any(row.get(name) for name in PROMPT_FIELDS)
    )


def _before_the_answer(row_format: RowFormat, row: Fields) -> Dialogue:
    """What comes before the answer that a row ends with, else all of it. Raises UnfitRow and UnwantedRow.

    A row that ends with a user's message, or with the result of a tool, asks for the answer to that.
    """
    dialogue = row_format.convert(row)
    if isinstance(dialogue, TokenRow):
        raise UnfitRow("no prompt", "a row of ids has no prompt that a reward could read")
    if isinstance(dialogue, str):
        return Dialogue([text_message("user", dialogue, "text")])
    is_answered = dialogue.messages[-1]["role"] == "assistant"
    messages = list(dialogue.messages[:-1] if is_answered else dialogue.messages)
    if not messages:
        raise UnfitRow("no prompt", "nothing comes before the answer")
    text = dialogue.prompt_text if len(messages) == dialogue.num_prompt else None
    return replace(dialogue, messages=messages, prompt_text=text)


def _noted(described: str, note: str) -> str:
    return f"{described}; {note}" if note else described
