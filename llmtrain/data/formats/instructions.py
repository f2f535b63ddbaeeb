"""Instruction rows: the formats in which people keep them, and what their rows become: conversations, plain texts.

A format is recognised by the names of a row's fields, and by what they hold where names alone do not decide. A new
format is a function among FINDERS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

from llmtrain.config.sections import OnBadRow, Source
from llmtrain.data.formats.messages import (
    Conversation,
    Dialogue,
    Message,
    UnfitRow,
    UnknownFormat,
    UnwantedRow,
    best_path,
    marked_messages,
    marking_of,
    shortened,
    shown,
    text_message,
    tool_list,
    turn_message,
    turn_messages,
)
from llmtrain.data.formats.read import Dropped, FormatReader, read_examples
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.rows import Fields, Row, has_field, value_at
from llmtrain.protocols import Report

CANONICAL = (
    "messages",
    "tools",
    "system",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "conversations",
    "text",
)
"""The names that a source's `fields` may map."""
COMPLETIONS = {
    "prompt": ("completion", "response", "answer", "output"),
    "question": ("answer", "response"),
    "query": ("response",),
}
"""Field that holds a prompt -> fields that may hold what completes it."""
INPUTS, OUTPUTS = ("input", "context"), ("output", "response")
"""Alpaca's fields, and Dolly's for the same."""
SYSTEMS = ("system", "system_prompt")
CHOICE = {"chosen", "rejected"}
CHOICE_BASES = ("prompt", "question", "messages", "conversations", "instruction")
"""Fields that hold what a preference row's two answers answer."""
CHOSEN_NOTE = "chosen is trained on, rejected is not used"


@dataclass(frozen=True)
class PlainText:
    """A text that is trained on unchanged."""

    text: str
    where: str  # file:line, for messages to the user
    num_bytes: int  # as UTF-8

    def digest(self) -> bytes:
        """16 bytes that depend on the text alone."""
        return blake2b(self.text.encode(), digest_size=16).digest()


Example = Conversation | PlainText


@dataclass(frozen=True)
class RowFormat:
    """One way to read a row."""

    name: str
    chosen_by: Mapping[str, str]  # canonical name -> field of the row: the source's `fields` that choose this format
    convert: Callable[[Fields], Dialogue | str]  # raises UnfitRow, UnwantedRow
    note: str = ""  # what the user should know besides


def iter_examples(source: Source, on_bad_row: OnBadRow, ledger: SourceLedger, report: Report) -> Iterator[Example]:
    """The conversations and texts of a source, read as `read_examples` does; blank texts are dropped."""
    check_canonical(source.fields, source.path)
    return read_examples(source, partial(_reader, source.fields), on_bad_row, ledger, report, unit="row")


def check_canonical(fields: Mapping[str, str], path: str) -> None:
    """Raises ValueError if a source's `fields` maps a name that no format has."""
    for name in fields:
        if name not in CANONICAL:
            raise ValueError(
                f"{path}: the source's fields maps {name!r}, which is none of the names it may map: "
                f"{', '.join(CANONICAL)}"
            )


def renamed(row: Fields, fields: Mapping[str, str]) -> Fields:
    """A row whose fields have the canonical names that the source's `fields` gives them."""
    if not fields:
        return row
    mapped = {*fields, *fields.values()}
    kept = {name: value for name, value in row.items() if name not in mapped}
    return kept | {name: value_at(row, field) for name, field in fields.items() if has_field(row, field)}


def fields_read(row_format: RowFormat, fields: Mapping[str, str]) -> dict[str, str]:
    """Canonical name -> field of the row, of what a format reads."""
    return {name: fields.get(field, field) for name, field in row_format.chosen_by.items()}


def _reader(fields: Mapping[str, str], row: Row) -> FormatReader[Example]:
    row_format = recognise(row, fields)
    return FormatReader(
        row_format.name, partial(_examples, row_format, fields), partial(_described, row_format, fields)
    )


def _examples(row_format: RowFormat, fields: Mapping[str, str], row: Row) -> list[Example | Dropped]:
    """A row's one example, or why it is dropped; raises UnfitRow, UnwantedRow, UnicodeEncodeError, RecursionError."""
    dialogue = row_format.convert(renamed(row.fields, fields))
    if isinstance(dialogue, str):
        text = PlainText(dialogue, row.where, len(dialogue.encode()))
        return [text if dialogue.strip() else Dropped("empty", text.num_bytes)]
    if all(message["role"] != "assistant" for message in dialogue.messages):
        raise UnfitRow("no assistant turn", "no message is the assistant's")
    num_bytes = _num_bytes(dialogue.tools)
    for message in dialogue.messages:
        num_bytes += sum(_num_bytes(value) for key, value in message.items() if key != "role")
    return [Conversation(tuple(dialogue.messages), dialogue.num_prompt, dialogue.tools, row.where, num_bytes)]


def _num_bytes(tree: Any) -> int:
    """The UTF-8 bytes of every string in a tree, keys included; raises UnicodeEncodeError."""
    if isinstance(tree, str):
        return len(tree.encode())
    if isinstance(tree, Mapping):
        return sum(_num_bytes(key) + _num_bytes(value) for key, value in tree.items())
    return sum(map(_num_bytes, tree)) if isinstance(tree, list | tuple) else 0


def _described(row_format: RowFormat, fields: Mapping[str, str], example: Example) -> str:
    """What was recognised, and one example of it, on one line."""
    first = shortened(example.text) if isinstance(example, PlainText) else shown(example.messages)
    return f"{recognised_as(row_format, fields)}; the first: {first}"


def recognised_as(row_format: RowFormat, fields: Mapping[str, str]) -> str:
    """The name of a format, the fields of the row that it reads, and what the user should know of it."""
    parts = [f"{row_format.name} rows (fields {', '.join(fields_read(row_format, fields).values())})"]
    return "; ".join([*parts, row_format.note] if row_format.note else parts)


def recognise(row: Row, fields: Mapping[str, str]) -> RowFormat:
    """The one format that a row is in, read under the canonical names of the source's `fields`.

    Raises UnknownFormat where the row is in none, and ValueError where it is in several or `fields` maps a field
    that the row lacks; the message says which `fields` to set.
    """
    for name, field in fields.items():
        if not has_field(row.fields, field):
            raise ValueError(
                f"{row.where}: no field {field!r} (mapped by {_braced({name: field})}), only {_names(row)}"
            )
    view = renamed(row.fields, fields)
    # A column that other rows need may hold null here; it names the format only where nothing else does.
    filled = {name: value for name, value in view.items() if value is not None}
    found = _formats(filled, fields) or _formats(view, fields)
    if len(found) > 1:
        found = [found_format for found_format in found if not _is_rendering(found_format, found, view)]
    if len(found) == 1:
        return found[0]
    if found:
        choices = "; ".join(f"{choice.name} by {_braced(fields_read(choice, fields))}" for choice in found)
        raise ValueError(
            f"{row.where}: the row is in {len(found)} formats; choose one by the source's fields: {choices}"
        )
    if {"text", "role", "parent_id"} <= view.keys():
        raise UnknownFormat(
            f"{row.where}: rows of single messages (text, role, parent_id) are not read, only whole trees"
        )
    mapped = f" with {_braced(fields)}" if fields else ""
    raise UnknownFormat(
        f"{row.where}: no format of instruction data is recognised by the fields {_names(row)}{mapped}; name them by "
        "the source's fields, such as {prompt: FIELD, completion: FIELD}, {messages: FIELD} or {text: FIELD}"
    )


def _formats(row: Fields, fields: Mapping[str, str]) -> list[RowFormat]:
    """The formats that a row is in and that use every field which the source's `fields` maps."""
    found = [found_format for find in FINDERS for found_format in find(row)]
    return [found_format for found_format in found if set(fields) <= set(found_format.chosen_by.values())]


def _is_rendering(this: RowFormat, found: Sequence[RowFormat], row: Fields) -> bool:
    """Whether a text row's text only repeats the answer that another format of the row separates from its prompt."""
    if this.chosen_by != {"text": "text"} or not isinstance(row["text"], str):
        return False
    try:
        others = [other.convert(row) for other in found if other is not this]
    except (UnfitRow, UnwantedRow):
        return False
    return all(isinstance(other, Dialogue) and other.messages[-1]["content"] in row["text"] for other in others)


def _listed(row: Fields) -> Iterator[RowFormat]:
    """`messages` or ShareGPT's `conversations`; with an answer in `chosen` they are only its prompt."""
    for name, format_name in (("messages", "messages"), ("conversations", "ShareGPT")):
        if name in row and (not row.keys() >= CHOICE or _is_whole(row["chosen"])):
            read = partial(_convert_listed, name)
            yield _labelled(row, RowFormat(format_name, {name: name, **_extras(row)}, read))


def _convert_listed(name: str, row: Fields) -> Dialogue:
    return with_extras(row, turn_messages(_value(row, name), repr(name)), 0)


def _pairs(row: Fields) -> Iterator[RowFormat]:
    """A prompt and what completes it, each a string or a list of messages."""
    for prompt, completions in COMPLETIONS.items():
        if prompt not in row or _is_tree(row[prompt]):
            continue
        for completion in completions:
            if completion in row:
                chosen_by = {"prompt": prompt, "completion": completion, **_extras(row)}
                read = partial(_convert_pair, prompt, completion)
                yield _labelled(row, RowFormat("prompt/completion", chosen_by, read))


def _convert_pair(prompt: str, completion: str, row: Fields) -> Dialogue:
    before = _side(row, prompt, "user")
    return with_extras(row, [*before, *_side(row, completion, "assistant")], len(before))


def _alpaca(row: Fields) -> Iterator[RowFormat]:
    """Stanford Alpaca's `instruction`, `input`, `output`, with LLaMA-Factory's `system` and `history`."""
    if "instruction" not in row or "instances" in row:
        return
    for output in OUTPUTS:
        if output in row:
            chosen_by = {"instruction": "instruction", **_aliased(row, "input", INPUTS), "output": output}
            yield RowFormat("Alpaca", {**chosen_by, **_extras(row)}, partial(_convert_alpaca, output))


def _convert_alpaca(output: str, row: Fields) -> Dialogue:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turns, list) and len(turns) == 2 for turns in history):
        raise UnfitRow("malformed history", "'history' is not a list of pairs of a question and its answer")
    messages: list[Message] = []
    for question, answer in history:
        messages += [text_message("user", question, "'history'"), text_message("assistant", answer, "'history'")]
    messages.append(_instruction(row))
    return with_extras(row, [*messages, text_message("assistant", _value(row, output), repr(output))], len(messages))


def _instruction(row: Fields) -> Message:
    """Instruction and input as one message, each on a separate line as LLaMA-Factory joins them."""
    names = ["instruction", *_aliased(row, "input", INPUTS).values()]
    given = [_string(row, name) for name in names if name == "instruction" or row[name] is not None]
    return text_message("user", "\n".join(part for part in given if part.strip()), "'instruction'")


def _self_instruct(row: Fields) -> Iterator[RowFormat]:
    """An instruction and instances of it, of which the first is read (Wang et al. 2023)."""
    if "instruction" in row and "instances" in row:
        chosen_by = {"instruction": "instruction"}
        yield RowFormat("self-instruct", chosen_by, _convert_self_instruct, "the first of instances is trained on")


def _convert_self_instruct(row: Fields) -> Dialogue:
    instances = _value(row, "instances")
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], Mapping):
        raise UnfitRow("malformed instances", "'instances' is not a list of objects with input and output")
    return _convert_alpaca("output", {"instruction": row.get("instruction"), **instances[0]})


def _text(row: Fields) -> Iterator[RowFormat]:
    """`text`, unchanged or with marked turns."""
    if "text" not in row or ("role" in row and ("replies" in row or "parent_id" in row)):
        return
    marking = marking_of(row["text"])
    if marking is None:
        yield RowFormat("text", {"text": "text"}, lambda row: _string(row, "text"))
    else:
        yield RowFormat(marking, {"text": "text"}, partial(_convert_marked, "text", marking))


def _convert_marked(name: str, marking: str, row: Fields) -> Dialogue:
    return Dialogue(marked_messages(_value(row, name), marking, repr(name)))


def _marked_pair(row: Fields) -> Iterator[RowFormat]:
    """`input` with marked turns, up to the answer in `output`."""
    marking = marking_of(row.get("input"))
    if marking is not None and "output" in row and "instruction" not in row:
        yield RowFormat(marking, {"input": "input", "output": "output"}, partial(_convert_marked_pair, marking))


def _convert_marked_pair(marking: str, row: Fields) -> Dialogue:
    before = marked_messages(_value(row, "input"), marking, "'input'", open_end=True)
    return Dialogue([*before, text_message("assistant", _value(row, "output"), "'output'")], len(before))


def _trees(row: Fields) -> Iterator[RowFormat]:
    """OpenAssistant's trees, under `prompt` or as the row itself."""
    note = "the path of best-ranked replies is trained on"
    if _is_tree(row.get("prompt")):
        yield RowFormat("OpenAssistant tree", {"prompt": "prompt"}, _convert_tree, note)
    elif {"text", "role", "replies"} <= row.keys():
        yield RowFormat("OpenAssistant tree", {"text": "text"}, lambda row: Dialogue(best_path(row, "the row")), note)


def _convert_tree(row: Fields) -> Dialogue:
    return Dialogue(best_path(_value(row, "prompt"), "'prompt'"))


def _choices(row: Fields) -> Iterator[RowFormat]:
    """Preference rows: `chosen` as a whole dialogue, or as the answer to what another field holds."""
    if not row.keys() >= CHOICE:
        return
    chosen = row["chosen"]
    marking = marking_of(chosen)
    if _is_whole(chosen):
        chosen_by = {"messages": "chosen", **_extras(row)}
        yield RowFormat("preference", chosen_by, _convert_whole_choice, CHOSEN_NOTE)
        return
    if marking is not None:
        yield RowFormat(marking, {"text": "chosen"}, partial(_convert_marked, "chosen", marking), CHOSEN_NOTE)
        return
    for base in CHOICE_BASES:
        if base in row and base == "instruction":
            chosen_by = {base: base, **_aliased(row, "input", INPUTS), "output": "chosen", **_extras(row)}
            yield RowFormat("preference", chosen_by, partial(_convert_choice, base), CHOSEN_NOTE)
        elif base in row:
            name = base if base in CANONICAL else "prompt"
            chosen_by = {name: base, "completion": "chosen", **_extras(row)}
            yield RowFormat("preference", chosen_by, partial(_convert_choice, base), CHOSEN_NOTE)


def _convert_whole_choice(row: Fields) -> Dialogue:
    messages = turn_messages(_value(row, "chosen"), "'chosen'")
    return with_extras(row, messages, len(messages) - 1 if "prompt" in row else 0)


def _convert_choice(base: str, row: Fields) -> Dialogue:
    before = [_instruction(row)] if base == "instruction" else _side(row, base, "user")
    return with_extras(row, [*before, *_side(row, "chosen", "assistant")], len(before))


FINDERS = (_listed, _pairs, _alpaca, _self_instruct, _marked_pair, _trees, _choices, _text)


def _is_whole(chosen: Any) -> bool:
    """Whether `chosen` is a list of messages that begins with the prompt's."""
    if not isinstance(chosen, list) or not chosen or not isinstance(chosen[0], Mapping):
        return False
    return (chosen[0].get("role") or chosen[0].get("from")) in ("system", "developer", "user", "human")


def _is_tree(value: Any) -> bool:
    return isinstance(value, Mapping) and "replies" in value


def _labelled(row: Fields, row_format: RowFormat) -> RowFormat:
    """A format whose rows carry KTO's `label`: an answer that is labelled as bad is not trained on."""
    if not isinstance(row.get("label"), bool):
        return row_format

    def convert(row: Fields) -> Dialogue | str:
        if row.get("label") is False:
            raise UnwantedRow("label is false")
        return row_format.convert(row)

    return replace(row_format, convert=convert, note="rows whose label is false are dropped")


def with_extras(row: Fields, messages: list[Message], num_prompt: int) -> Dialogue:
    """A dialogue with the row's system prompt before it, and its tools; raises UnfitRow for what is not one."""
    system = next((row[name] for name in SYSTEMS if row.get(name) is not None), "")
    if isinstance(system, str) and not system.strip():
        return Dialogue(messages, num_prompt, tool_list(row.get("tools"), "'tools'"))
    if messages[0]["role"] in ("system", "developer"):
        raise UnfitRow(
            "two system prompts", "the row has a system prompt in a separate field and another among its messages"
        )
    first = text_message("system", system, "the system prompt")
    return Dialogue([first, *messages], num_prompt + (num_prompt > 0), tool_list(row.get("tools"), "'tools'"))


def _side(row: Fields, name: str, role: str) -> list[Message]:
    """A string as one message, or the messages that a field holds."""
    value = _value(row, name)
    if isinstance(value, list):
        return turn_messages(value, repr(name))
    return [turn_message(value, repr(name)) if isinstance(value, Mapping) else text_message(role, value, repr(name))]


def _string(row: Fields, name: str) -> str:
    value = _value(row, name)
    if not isinstance(value, str):
        raise UnfitRow("content is not a string", f"{name!r} holds {type(value).__name__}, not a string")
    return value


def _value(row: Fields, name: str) -> Any:
    if row.get(name) is None:
        present = ", ".join(repr(name) for name, value in row.items() if value is not None) or "nothing"
        raise UnfitRow("missing field", f"{name!r} is missing or null; there is {present}")
    return row[name]


def _extras(row: Fields) -> dict[str, str]:
    """What a row may have besides its messages."""
    return _aliased(row, "system", SYSTEMS) | _aliased(row, "tools", ("tools",))


def _aliased(row: Fields, name: str, aliases: Sequence[str]) -> dict[str, str]:
    present = [alias for alias in aliases if alias in row]
    filled = [alias for alias in present if row[alias] is not None]
    return {name: (filled or present)[0]} if present else {}


def _braced(fields: Mapping[str, str]) -> str:
    """As YAML writes it."""
    return "{" + ", ".join(f"{name}: {field}" for name, field in fields.items()) + "}"


def _names(row: Row) -> str:
    return ", ".join(map(repr, row.fields)) or "none"
