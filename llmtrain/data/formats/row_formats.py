"""The formats of instruction rows, one table: the fields that a row has -> how it is read.

Each function in FINDERS looks at the fields of a row, under canonical names (`naming`), and gives the formats that it
knows and that the row is in. What it gives reads every row of the source. A new format is a function among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmtrain.data.formats.faults import UnfitRow
from llmtrain.data.formats.marked import marked_messages, marking_of
from llmtrain.data.formats.messages import Dialogue, Message, text_message, tool_list, turn_message, turn_messages
from llmtrain.data.formats.naming import LISTS, TOOLS
from llmtrain.data.formats.roles import begins_with_answer, is_turns
from llmtrain.data.formats.same_prompt import CHOICE_BASES, require_same_prompt
from llmtrain.data.formats.token_rows import ATTENTION, IDS, TokenRow, has_ids, mask_fields, token_row
from llmtrain.data.formats.trees import best_path, is_tree
from llmtrain.data.ledger import TOKENIZED
from llmtrain.data.sources.rows import Fields

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
    "weight",
    "input_ids",
    "labels",
    "loss_mask",
    "attention_mask",
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
QUESTIONS = ("question", "query")
"""Fields whose text is about what one of INPUTS holds, where the row has one."""
CHOICE = {"chosen", "rejected"}
CHOSEN_NOTE = "chosen is trained on, rejected is not used"


@dataclass(frozen=True)
class RowFormat:
    """One way to read a row."""

    name: str
    chosen_by: Mapping[str, str]  # canonical name -> field of the row: the source's `fields` that choose this format
    convert: Callable[[Fields], Dialogue | TokenRow | str]  # raises UnfitRow, UnwantedRow
    note: str = ""  # what the user should know besides


def _tokenized(row: Fields) -> Iterator[RowFormat]:
    """`input_ids`, whatever else the row has: what they were made of."""
    if not has_ids(row):
        return
    masks = mask_fields(row)
    used = {name: name for name in (IDS, *masks, ATTENTION) if row.get(name) is not None}
    note = "" if masks else "no labels or mask, so every token is trained"
    yield RowFormat(TOKENIZED, used, partial(_convert_tokenized, bool(masks)), note)


def _convert_tokenized(are_masked: bool, row: Fields) -> TokenRow:
    """A row's ids; `are_masked`: the first row of its source says which are trained, so that each has to."""
    if are_masked and not mask_fields(row):
        raise UnfitRow("no mask", "no labels or mask, as the source's first row has, so every token would be trained")
    return token_row(row, "")


def _listed(row: Fields) -> Iterator[RowFormat]:
    """`messages` or ShareGPT's `conversations`; with an answer in `chosen` they are only its prompt."""
    for name, format_name in LISTS.items():
        is_known = name in CANONICAL or is_turns(row.get(name))
        if name in row and is_known and (not row.keys() >= CHOICE or _is_whole(row["chosen"])):
            read = partial(_convert_listed, name)
            yield RowFormat(format_name, {name: name, **_extras(row)}, read)


def _convert_listed(name: str, row: Fields) -> Dialogue:
    return with_extras(row, turn_messages(_value(row, name), repr(name)), 0)


def _pairs(row: Fields) -> Iterator[RowFormat]:
    """A prompt and what completes it, each a string or a list of messages."""
    for prompt, completions in COMPLETIONS.items():
        if prompt not in row or is_tree(row[prompt]):
            continue
        for completion in completions:
            if completion in row:
                chosen_by = {"prompt": prompt, **about(row, prompt), "completion": completion, **_extras(row)}
                read = partial(_convert_pair, prompt, completion)
                yield RowFormat("prompt/completion", chosen_by, read)


def _convert_pair(prompt: str, completion: str, row: Fields) -> Dialogue:
    before = asked_side(row, prompt)
    messages = [*before.messages, *_side(row, completion, before)]
    return with_extras(row, messages, len(before.messages), before.text)


@dataclass(frozen=True)
class Side:
    """A prompt."""

    messages: list[Message]
    text: str | None = None  # as the row has it, where it is one text with marked turns


def asked_side(row: Fields, name: str) -> Side:
    """The prompt that a field holds: a text, a text with marked turns, a message or messages. Raises UnfitRow."""
    value = _value(row, name)
    marking = marking_of(value)
    if marking is not None:
        return Side(marked_messages(value, marking, repr(name), open_end=True), value)
    if isinstance(value, str):
        parts = [value, *(row[given] for given in about(row, name))]
        text = value if len(parts) == 1 else "\n".join(part for part in parts if part.strip())
        return Side([text_message("user", text, repr(name))])
    if isinstance(value, list):
        return Side(turn_messages(value, repr(name)))
    return Side([turn_message(value, repr(name))])


def about(row: Fields, name: str) -> dict[str, str]:
    """The fields that hold what a question is about, as text."""
    if name not in QUESTIONS:
        return {}
    return {given: given for given in INPUTS if isinstance(row.get(given), str)}


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
    if "text" not in row or ("role" in row and "replies" in row):
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
    answer = text_message("assistant", _value(row, "output"), "'output'")
    return Dialogue([*before, answer], len(before), prompt_text=row["input"])


def _trees(row: Fields) -> Iterator[RowFormat]:
    """OpenAssistant's trees, under `prompt` or as the row itself."""
    note = "the path of best-ranked replies is trained on"
    if is_tree(row.get("prompt")):
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
        yield RowFormat(marking, {"text": "chosen"}, partial(_convert_marked_choice, marking), CHOSEN_NOTE)
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
    require_same_prompt(row, messages)
    return with_extras(row, messages, len(messages) - 1 if "prompt" in row else 0)


def _convert_marked_choice(marking: str, row: Fields) -> Dialogue:
    dialogue = _convert_marked("chosen", marking, row)
    require_same_prompt(row, dialogue.messages)
    return dialogue


def _convert_choice(base: str, row: Fields) -> Dialogue:
    before = Side([_instruction(row)]) if base == "instruction" else asked_side(row, base)
    return with_extras(row, [*before.messages, *_side(row, "chosen", before)], len(before.messages), before.text)


FINDERS = (_tokenized, _listed, _pairs, _alpaca, _self_instruct, _marked_pair, _trees, _choices, _text)


def _is_whole(chosen: Any) -> bool:
    """Whether `chosen` is a list of messages that begins with the prompt's."""
    return is_turns(chosen) and not begins_with_answer(chosen[0])


def with_extras(row: Fields, messages: list[Message], num_prompt: int, text: str | None = None) -> Dialogue:
    """A dialogue with the row's system prompt before it, and its tools; raises UnfitRow for what is not one.

    `text` is the prompt as one text, where the row has it so.
    """
    tools = tool_list(row.get(_aliased(row, "tools", _tools(row)).get("tools", "tools")), "'tools'")
    system = next((row[name] for name in SYSTEMS if row.get(name) is not None), "")
    if isinstance(system, str) and not system.strip():
        return Dialogue(messages, num_prompt, tools, text)
    if messages and messages[0]["role"] in ("system", "developer"):
        raise UnfitRow(
            "two system prompts", "the row has a system prompt in a separate field and another among its messages"
        )
    first = text_message("system", system, "the system prompt")
    return Dialogue([first, *messages], num_prompt + (num_prompt > 0), tools)


def _side(row: Fields, name: str, before: Side) -> list[Message]:
    """An answer to a prompt: a string as one message, or the messages that a field holds.

    Raises UnfitRow where the prompt begins the answer: a template would write two turns, and end the first.
    """
    value = _value(row, name)
    if isinstance(value, list):
        messages = turn_messages(value, repr(name))
    elif isinstance(value, Mapping):
        messages = [turn_message(value, repr(name))]
    else:
        messages = [text_message("assistant", value, repr(name))]
    last = before.messages[-1]
    if last["role"] == messages[0]["role"] == "assistant" and "tool_calls" not in last:
        raise UnfitRow(
            "an answer begun in the prompt",
            f"the prompt ends with an assistant's message, and {name!r} begins with another: write the whole answer "
            f"into {name!r}",
        )
    return messages


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
    return _aliased(row, "system", SYSTEMS) | _aliased(row, "tools", _tools(row))


def _tools(row: Fields) -> tuple[str, ...]:
    """The fields that hold a row's tools; `functions` only where it does."""
    held = row.get("functions")
    has_functions = isinstance(held, list) or (isinstance(held, str) and held.lstrip().startswith("["))
    return tuple(name for name in TOOLS if name in row and (name != "functions" or has_functions))


def _aliased(row: Fields, name: str, aliases: Sequence[str]) -> dict[str, str]:
    present = [alias for alias in aliases if alias in row]
    filled = [alias for alias in present if row[alias] is not None]
    return {name: (filled or present)[0]} if present else {}
