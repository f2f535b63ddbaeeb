"""Which format instruction rows are in: how it is chosen, and one line for every row that is in none or wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from instruction_rows import ASSISTANT, HH, SHAREGPT, SYSTEM, TURNS, USER, conversation, fault, one, read, write

from llmtrain.data.formats.faults import UnknownFormat
from llmtrain.data.formats.instructions import PlainText, recognise
from llmtrain.data.formats.naming import Naming
from llmtrain.data.sources.rows import Row


def test_fields_of_other_names_are_mapped(tmp_path: Path):
    assert conversation(tmp_path, {"ask": "2 + 2?", "say": "4"}, prompt="ask", completion="say").messages == tuple(
        TURNS
    )


def test_mapped_fields_choose_between_formats(tmp_path: Path):
    row = {"messages": [USER, {"role": "assistant", "content": "5"}], "prompt": "2 + 2?", "completion": "4"}
    assert conversation(tmp_path, row, prompt="prompt", completion="completion").messages == tuple(TURNS)
    assert conversation(tmp_path, row, messages="messages").messages[1]["content"] == "5"


def test_a_mapped_field_takes_the_place_of_one_of_the_canonical_name(tmp_path: Path):
    row = {"instruction": "2 + 2?", "input": "", "output": "5", "chosen": "4", "rejected": "5"}
    mapped = conversation(tmp_path, row, instruction="instruction", input="input", output="chosen")
    assert mapped.messages == tuple(TURNS)


def test_each_format_that_a_row_is_in_is_named_with_the_fields_that_choose_it(tmp_path: Path):
    assert fault(tmp_path, {"id": 1, "messages": TURNS, "prompt": "a", "response": "b"}) == (
        "rows.jsonl:1: the row is in 2 formats; choose one by the source's fields: messages by {messages: messages}; "
        "prompt/completion by {prompt: prompt, completion: response}"
    )


def test_two_possible_completions_are_not_guessed_between(tmp_path: Path):
    message = fault(tmp_path, {"prompt": "a", "response": "b", "answer": "c"})
    assert (
        "{prompt: prompt, completion: response}; prompt/completion by {prompt: prompt, completion: answer}" in message
    )


def test_a_text_that_only_renders_the_rows_other_fields_is_no_second_format(tmp_path: Path):
    row = {"instruction": "2 + 2?", "input": "", "output": "4", "text": "### Instruction: 2 + 2?\n### Response: 4"}
    assert conversation(tmp_path, row).messages == tuple(TURNS)


def test_a_text_of_its_own_is_a_second_format(tmp_path: Path):
    assert "text by {text: text}" in fault(tmp_path, {"question": "Who?", "answer": "Ann", "text": "A passage."})


def test_fields_and_columns_without_a_meaning_are_no_format(tmp_path: Path):
    row = {"id": "1", "prompt": "2 + 2?", "messages": TURNS, "source": "x", "completion": None}
    assert conversation(tmp_path, row).messages == tuple(TURNS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"a": "b", "prompt": "c"},
            "recognised by the fields 'a', 'prompt'; name them by the source's fields, such as ",
        ),
        ({}, "recognised by the fields none; "),
        ({"input": "a", "output": "b"}, "recognised by the fields 'input', 'output'; "),
        ({"chosen": "a", "rejected": "b"}, "recognised by the fields 'chosen', 'rejected'; "),
        ({"message_id": "1", "parent_id": "0", "role": "prompter", "text": "q"}, "rows of single messages"),
        ({"message_id": "1", "parent_id": None, "role": "prompter", "text": "q"}, "by 'prompter') are not read"),
        ({"chat": 3, "speaker": "Assistant", "text": "a"}, "by 'Assistant') are not read"),
    ],
)
def test_a_row_of_no_format_is_an_error_that_says_what_to_set(tmp_path: Path, row: dict[str, Any], message: str):
    assert message in fault(tmp_path, row)


def test_a_single_message_is_text_where_the_source_says_so(tmp_path: Path):
    for row, fields in (({"role": "user", "text": "q"}, {"text": "text"}), ({"role": "editor", "text": "q"}, {})):
        example = one(tmp_path, row, **fields)
        assert isinstance(example, PlainText) and example.text == "q"


def test_a_mapped_field_that_is_missing_is_an_error_that_lists_what_there_is(tmp_path: Path):
    assert fault(tmp_path, {"question": "a", "answer": "b"}, prompt="questoin") == (
        "rows.jsonl:1: no field 'questoin' (mapped by {prompt: questoin}), only 'question', 'answer'"
    )


def test_an_unknown_canonical_name_is_an_error_that_lists_the_known(tmp_path: Path):
    message = fault(tmp_path, {"prompt": "a", "completion": "b"}, promt="prompt")
    assert "maps 'promt', which is none of the names it may map: messages, tools, system, prompt, " in message


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, ASSISTANT]}


def calls(value: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "tool_calls": value}]}


BAD_ROWS = [
    (
        {"messages": [USER, {"role": "critic", "content": "x"}]},
        "unknown role",
        "message 1 of 'messages' has the role 'crit",
    ),
    ({"messages": []}, "empty conversation", "'messages' holds no message"),
    ({"messages": "hello"}, "not a list of messages", "'messages' holds str, not a list of messages"),
    ({"messages": ["hello"]}, "not a message", "message 0 of 'messages' is str, not an object"),
    ({"messages": [{"role": None, "content": "a"}]}, "not a message", "message 0 of 'messages': 'role' is null"),
    ({"messages": [{"who": "user"}]}, "not a message", "has neither role and content nor from and value, but 'who'"),
    ({"messages": [{"role": "user"}]}, "message without content", "message 0 of 'messages' has neither content nor"),
    (
        {"messages": [USER, {"role": "assistant", "content": " "}]},
        "message without content",
        "the assistant's message is empty",
    ),
    ({"messages": [SYSTEM, USER]}, "no assistant turn", "no message is the assistant's"),
    ({"messages": [SYSTEM, *TURNS], "system": "x"}, "two system prompts", "a system prompt in a separate field"),
    (user(7), "content is not a string", "message 0 of 'messages': the content is int, not a string"),
    (
        user([{"type": "image_url", "image_url": {}}]),
        "content is not text",
        "the content holds a part of type 'image_url'",
    ),
    (user("\ud83d"), "invalid UTF-8", r"a string holds \ud83d, half a surrogate pair, which is not valid Unicode"),
    (calls([{"function": {"arguments": {}}}]), "malformed tool call", "a tool call needs the name of a function"),
    (calls([{"function": {"name": "f", "arguments": "[1]"}}]), "malformed tool call", "the arguments of f are list"),
    (
        calls([{"function": {"name": "f", "arguments": "{"}}]),
        "malformed JSON",
        "malformed JSON in message 1 of 'messages', the arguments of f (",
    ),
    ({"messages": TURNS, "tools": "{}"}, "malformed tools", "'tools' is not a list of objects"),
    (
        {"prompt": "a", "completion": "b"},
        "missing field",
        "'messages' is missing or null; there is 'prompt', 'completion'",
    ),
    (["a"], "not an object", "a row must be a JSON object, not list"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD_ROWS, ids=[message[:40] for _, _, message in BAD_ROWS])
def test_a_bad_row_is_an_error_that_names_its_line_or_is_counted(tmp_path: Path, row: Any, reason: str, message: str):
    path = write(tmp_path, {"messages": TURNS}, row, {"messages": TURNS})
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: .*; fix the row, or set data\.on_bad_row=skip$") as raised:
        read(path)
    assert message in str(raised.value)
    examples, ledger = read(path, on_bad_row="skip")
    assert len(examples) == 2
    assert {reason: tally.documents for reason, tally in ledger.bad_rows.items()} == {reason: 1}


@pytest.mark.parametrize(
    ("first", "bad", "message"),
    [
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": 4}, "'completion': the content is int"),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}, "'completion' is missing or null"),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "a", "output": ""},
            "'output': the assistant's message is empty",
        ),
        (
            {"text": HH},
            {"text": "no dialogue"},
            "'text' is not a HH-RLHF dialogue: it begins with \"no dialogue\"",
        ),
        ({"text": HH}, {"text": "\n\nHuman: a\n\nAssistant:"}, "message 1 of 'text': the assistant's message is empty"),
        (
            {"conversations": SHAREGPT},
            {"conversations": [{"from": "function_call", "value": "f()"}]},
            "malformed JSON in message 0 of 'conversations', the tool call (",
        ),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "a", "output": "b", "history": ["c"]},
            "'history' is not a list",
        ),
        (
            {"instruction": "a", "instances": [{"output": "b"}]},
            {"instruction": "a", "instances": []},
            "'instances' is not a list",
        ),
        ({"text": "a"}, {"text": 3}, "'text' holds int, not a string"),
    ],
    ids=["number", "null", "blank answer", "unmarked", "no answer", "function call", "history", "instances", "text"],
)
def test_a_row_that_does_not_fit_its_sources_format_is_bad(tmp_path: Path, first: Any, bad: Any, message: str):
    said = fault(tmp_path, first, bad)
    assert said.startswith("rows.jsonl:2: ")
    assert message in said


@pytest.mark.parametrize("prompt", [[USER, ASSISTANT], [ASSISTANT]])
@pytest.mark.parametrize("completion", [ASSISTANT, [ASSISTANT, USER, ASSISTANT], "4"])
def test_an_answer_begun_in_the_prompt_is_not_two_answers(tmp_path: Path, prompt: Any, completion: Any):
    said = fault(tmp_path, {"prompt": prompt, "completion": completion})
    assert "rows.jsonl:1: the prompt ends with an assistant's message, and 'completion' begins with another" in said


def test_a_row_without_a_format_says_which_of_its_fields_are_empty() -> None:
    row = Row({"prompt": "", "id": 3, "note": []}, "rows.jsonl:1")
    with pytest.raises(UnknownFormat, match=r"by the fields 'prompt', 'id', 'note' \(empty: 'prompt', 'note'\);"):
        recognise(row, Naming())
