"""Instruction data: every format becomes the same messages, and every row is accounted for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from instruction_rows import (
    ASSISTANT,
    CALLING,
    GUANACO,
    HH,
    SHAREGPT,
    SYSTEM,
    TOOL,
    TREE,
    TURNS,
    USER,
    conversation,
    fault,
    one,
    read,
    write,
)

from llmtrain.config.data import Source
from llmtrain.data.formats.instructions import PlainText, iter_examples
from llmtrain.data.formats.messages import Conversation
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.rows import Wanted
from llmtrain.data.sources.tables import read_parquet
from llmtrain.data.sources.text import Document

FORMATS = [
    ("messages", {"messages": TURNS}, 0),
    ("prompt/completion", {"prompt": "2 + 2?", "completion": "4"}, 1),
    ("prompt/completion", {"prompt": "2 + 2?", "response": "4"}, 1),
    ("prompt/completion", {"prompt": "2 + 2?", "answer": "4"}, 1),
    ("prompt/completion", {"prompt": "2 + 2?", "output": "4"}, 1),
    ("prompt/completion", {"question": "2 + 2?", "answer": "4"}, 1),
    ("prompt/completion", {"question": "2 + 2?", "response": "4"}, 1),
    ("prompt/completion", {"query": "2 + 2?", "response": "4"}, 1),
    ("prompt/completion", {"prompt": [USER], "completion": [ASSISTANT]}, 1),
    ("prompt/completion", {"prompt": [USER], "completion": "4"}, 1),
    ("Alpaca", {"instruction": "2 + 2?", "input": "", "output": "4"}, 1),
    ("Alpaca", {"instruction": "2 + 2?", "output": "4"}, 1),
    ("Alpaca", {"instruction": "2 + 2?", "context": "", "response": "4"}, 1),
    ("ShareGPT", {"conversations": SHAREGPT}, 0),
    ("ShareGPT", {"conversations": TURNS}, 0),
    ("HH-RLHF dialogue", {"text": HH}, 0),
    ("HH-RLHF dialogue", {"chosen": HH, "rejected": HH + "!"}, 0),
    ("### Human dialogue", {"text": GUANACO}, 0),
    ("### Human dialogue", {"text": "### Human: 2 + 2?\n### Assistant: 4"}, 0),
    ("### Human dialogue", {"input": "### Human: 2 + 2? ### Assistant:", "output": "4"}, 1),
    ("OpenAssistant tree", {"message_tree_id": "x", "prompt": TREE}, 0),
    ("OpenAssistant tree", {"message_id": "x", "parent_id": None, **TREE}, 0),
    ("self-instruct", {"instruction": "2 + 2?", "instances": [{"input": "", "output": "4"}, {"output": "5"}]}, 1),
    ("preference", {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]}, 1),
    ("preference", {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, 1),
    ("preference", {"prompt": "2 + 2?", "chosen": TURNS, "rejected": TURNS}, 1),
    ("preference", {"chosen": TURNS, "rejected": TURNS}, 0),
    ("preference", {"instruction": "2 + 2?", "input": "", "chosen": "4", "rejected": "5"}, 1),
    ("preference", {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]}, 1),
    ("preference", {"messages": [USER], "chosen": ASSISTANT, "rejected": ASSISTANT}, 1),
]


@pytest.mark.parametrize(
    ("name", "row", "num_prompt"), FORMATS, ids=[f"{name}: {' '.join(row)}" for name, row, _ in FORMATS]
)
def test_every_format_gives_the_same_messages(tmp_path: Path, name: str, row: dict[str, Any], num_prompt: int):
    (example,), ledger = read(write(tmp_path, row))
    assert isinstance(example, Conversation)
    assert (list(example.messages), example.num_prompt, ledger.row_format) == (TURNS, num_prompt, name)


def test_a_text_row_is_trained_as_it_stands(tmp_path: Path):
    assert one(tmp_path, {"id": 1, "text": " größer\n"}) == PlainText(" größer\n", f"{tmp_path}/rows.jsonl:1", 10)


def test_a_parquet_file_gives_the_messages_that_json_lines_give(tmp_path: Path):
    rows = [{"messages": [USER, CALLING, {"role": "tool", "content": "4", "name": "add"}]}, {"messages": TURNS}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    parquet, json_lines = read(tmp_path / "rows.parquet")[0], read(write(tmp_path, *rows))[0]
    assert [example.messages for example in parquet] == [example.messages for example in json_lines]


def test_a_message_keeps_what_else_it_holds_but_no_null(tmp_path: Path):
    message = {**ASSISTANT, "reasoning_content": "easy", "name": None}
    assert conversation(tmp_path, {"messages": [USER, message]}).messages[1] == {
        **ASSISTANT,
        "reasoning_content": "easy",
    }


def test_text_parts_of_a_content_are_joined(tmp_path: Path):
    parts = [{"type": "text", "text": "2 +"}, {"type": "text", "text": " 2?"}]
    row = {"messages": [{"role": "user", "content": parts}, ASSISTANT]}
    assert conversation(tmp_path, row).messages[0] == USER


@pytest.mark.parametrize(
    "arguments", ['{"a": 2, "b":2}', '{"a": null}', {"a": None}, {"a": {"b": None, "c": [None, {"d": None}]}}, {}]
)
def test_tool_calls_are_kept_to_the_letter(tmp_path: Path, arguments: Any):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert conversation(tmp_path, row).messages[1] == {**CALLING, "tool_calls": [call]}


@pytest.mark.parametrize("default", [{"default": None}, {"default": None, "enum": ["x", None]}, {}])
def test_schemas_are_kept_to_the_letter(tmp_path: Path, default: Any):
    schema = {"type": "object", "properties": {"a": {"type": "string", **default}}}
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    for tools in ([tool], json.dumps([tool])):
        assert conversation(tmp_path, {"messages": TURNS, "tools": tools}).tools == (tool,)


def test_what_arrow_filled_with_nulls_is_taken_out_of_calls_and_tools(tmp_path: Path):
    calls = [[{"function": {"name": "add", "arguments": given}}] for given in ({"a": 2}, {"b": 3})]
    rows = [{"messages": [USER, {"role": "assistant", "content": "", "tool_calls": made}]} for made in calls]
    properties = ({"a": {"type": "integer"}}, {"b": {"type": "integer", "description": "a number"}})
    tools = [[{"function": {"name": "add", "parameters": {"properties": given}}}] for given in properties]
    path = tmp_path / "rows.parquet"
    columns = {"messages": [row["messages"] for row in rows], "tools": tools, "extra": [{"x": 1}, {"y": 2}]}
    pq.write_table(pa.table(columns), path)
    found = list(read_parquet(path, Wanted(lambda fields: True)))
    assert [row.fields["messages"][1]["tool_calls"] for row in found] == calls
    assert [row.fields["tools"] for row in found] == tools
    assert found[0].fields["extra"] == {"x": 1, "y": None}  # not what people say: as Arrow has it


def test_a_sharegpt_function_call_is_an_assistants_tool_call_and_its_observation_a_tools(tmp_path: Path):
    turns = [
        SHAREGPT[0],
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
        {"from": "observation", "value": '{"sum": 4}'},
        SHAREGPT[1],
    ]
    messages = conversation(tmp_path, {"conversations": turns}).messages
    assert messages == (USER, CALLING, {"role": "tool", "content": '{"sum": 4}'}, ASSISTANT)


@pytest.mark.parametrize(
    "tools",
    [[TOOL], json.dumps([TOOL]), [TOOL["function"]], json.dumps([TOOL["function"]])],
    ids=["list", "JSON", "bare", "bare JSON"],
)
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_tools_are_a_list_of_functions_however_they_are_written(tmp_path: Path, name: str, tools: Any):
    assert conversation(tmp_path, {name: TURNS, "tools": tools}).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, "", "[]", []])
def test_a_row_without_tools_has_none(tmp_path: Path, tools: Any):
    assert conversation(tmp_path, {"messages": TURNS, "tools": tools}).tools == ()


@pytest.mark.parametrize(
    ("row", "num_prompt"),
    [
        ({"conversations": SHAREGPT, "system": "Be brief."}, 0),
        ({"instruction": "2 + 2?", "output": "4", "system": "Be brief."}, 2),
        ({"question": "2 + 2?", "response": "4", "system_prompt": "Be brief."}, 2),
        ({"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]}, 0),
    ],
    ids=["ShareGPT", "Alpaca", "prompt", "turn"],
)
def test_a_system_prompt_comes_first(tmp_path: Path, row: dict[str, Any], num_prompt: int):
    example = conversation(tmp_path, row)
    assert (example.messages, example.num_prompt) == ((SYSTEM, USER, ASSISTANT), num_prompt)


def test_an_empty_system_field_adds_no_message(tmp_path: Path):
    assert conversation(tmp_path, {"conversations": SHAREGPT, "system": ""}).messages == (USER, ASSISTANT)


def test_an_alpaca_input_has_a_separate_line_and_history_comes_before(tmp_path: Path):
    row = {"instruction": "Add.", "input": "1 + 1", "output": "2", "history": [["2 + 2?", "4"]]}
    example = conversation(tmp_path, row)
    assert [message["content"] for message in example.messages] == ["2 + 2?", "4", "Add.\n1 + 1", "2"]
    assert example.num_prompt == 3


def test_marked_turns_of_a_longer_dialogue_alternate(tmp_path: Path):
    example = conversation(tmp_path, {"text": f"{HH}\n\nHuman: Sure?\n\nIn\n\ndeed?\n\nAssistant: Yes."})
    assert [message["content"] for message in example.messages] == ["2 + 2?", "4", "Sure?\n\nIn\n\ndeed?", "Yes."]


def reply(text: str, role: str, rank: int | None = None, replies: Sequence[Any] = (), **more: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([reply("b", "assistant", 1), reply("a", "assistant", 0)], ["q", "a"]),
        ([reply("b", "assistant"), reply("a", "assistant", 3)], ["q", "a"]),
        ([reply("a", "assistant", 0), reply("b", "assistant", 0)], ["q", "a"]),
        ([reply("x", "assistant", 0, deleted=True), reply("a", "assistant", 1)], ["q", "a"]),
        ([reply("a", "assistant", 0, [reply("why?", "prompter")])], ["q", "a"]),
        (
            [reply("a", "assistant", 0, [reply("why?", "prompter", None, [reply("so", "assistant")])])],
            ["q", "a", "why?", "so"],
        ),
    ],
    ids=["lowest rank", "unranked last", "first of equals", "not deleted", "ends at an assistant", "deep"],
)
def test_the_best_ranked_replies_of_a_tree_are_taken(tmp_path: Path, replies: list[Any], expected: list[str]):
    row = {"prompt": reply("q", "prompter", None, replies)}
    assert [message["content"] for message in conversation(tmp_path, row).messages] == expected


def test_a_tree_without_an_assistants_reply_is_dropped_and_counted(tmp_path: Path):
    ledger = read(write(tmp_path, {"prompt": TREE}, {"prompt": reply("q", "prompter")}))[1]
    assert (ledger.dropped["no assistant turn"].documents, ledger.bad_rows) == (1, {})


def test_an_answer_labelled_as_bad_is_dropped_and_counted(tmp_path: Path):
    rows = [{"messages": TURNS, "label": label} for label in (False, True, False)]
    said: list[str] = []
    examples, ledger = read(write(tmp_path, *rows), said=said)
    assert (len(examples), ledger.dropped["label is false"].documents) == (1, 2)
    assert "rows whose label is false are dropped" in said[0]


@pytest.mark.parametrize("key", ["label", "kto_tag"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"prompt": "2 + 2?", "completion": "4"},
        {"instruction": "2 + 2?", "output": "4"},
        {"conversations": SHAREGPT},
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
    ],
)
def test_bad_answers_are_dropped_from_rows_of_any_format(tmp_path: Path, row: dict[str, Any], key: str) -> None:
    for labels in ((True, False, 0), ("true", "False", "false")):
        examples, ledger = read(write(tmp_path, *({**row, key: label} for label in labels)))
        assert (len(examples), ledger.dropped[f"{key} is false"].documents) == (1, 2)


@pytest.mark.parametrize("first", [{}, {"label": None}])
def test_bad_answers_are_dropped_whatever_label_the_first_row_lacks(tmp_path: Path, first: dict[str, Any]) -> None:
    rows = [first, {"label": False}, {"label": 0}]  # which, alone, may be a class
    examples, ledger = read(write(tmp_path, *({"messages": TURNS, **each} for each in rows)))
    assert (len(examples), ledger.dropped["label is false"].documents) == (2, 1)


@pytest.mark.parametrize(
    ("row", "label"),
    [({"messages": TURNS}, 0), ({"prompt": "a", "completion": "b"}, "negative"), ({"text": "some words"}, False)],
)
def test_a_label_that_may_be_a_class_is_not_read_and_said(tmp_path: Path, row: dict[str, Any], label: Any) -> None:
    said: list[str] = []
    examples, _ = read(write(tmp_path, {**row, "label": label}, row | {"label": 1}), said=said)
    assert len(examples) == 2
    assert f"the field label ({label!r}) is not read: if it says whether an answer is good, write true" in said[0]


def test_blank_texts_are_dropped_and_counted(tmp_path: Path):
    ledger = read(write(tmp_path, {"text": " \n"}, {"text": "a"}, {"text": ""}))[1]
    assert ledger.dropped["empty"].documents == 2


def test_what_was_recognised_is_reported_once_with_the_first_row(tmp_path: Path):
    path = write(tmp_path, {"prompt": "what\n is " + "so " * 40, "response": "4"}, {"prompt": "b", "response": "c"})
    said: list[str] = []
    read(path, said=said)
    shown = "what is so so so so so so so so so so so so s..."
    assert said == [
        f'{path}: prompt/completion rows (fields prompt, response); the first: user "{shown}" -> assistant "4"'
    ]


def test_it_is_reported_that_chosen_answers_are_trained_on(tmp_path: Path):
    said: list[str] = []
    read(write(tmp_path, {"chosen": HH, "rejected": HH}), said=said)
    assert "HH-RLHF dialogue rows (fields chosen); chosen is trained on, rejected is not used; the first: " in said[0]


def test_a_long_first_row_is_shown_shortened(tmp_path: Path):
    said: list[str] = []
    read(write(tmp_path, {"messages": [USER, CALLING, *TURNS * 3]}), said=said)
    assert said[0].endswith('user "2 + 2?" -> assistant calls add -> user "2 + 2?" -> assistant "4" -> 4 more')


def test_the_bytes_are_those_of_all_strings_but_roles(tmp_path: Path):
    assert conversation(tmp_path, {"messages": [{**USER, "name": "Zoë"}, ASSISTANT]}).num_bytes == 6 + 4 + 1


def test_tools_and_tool_calls_count_in_the_bytes(tmp_path: Path):
    row = {"messages": [USER, CALLING], "tools": [TOOL]}
    strings = "2 + 2?" + "typefunctionfunctionnameaddargumentsab" + "typefunctionfunctionnameaddparameterstypeobject"
    assert conversation(tmp_path, row).num_bytes == len(strings)


def test_a_digest_depends_on_the_content_alone(tmp_path: Path):
    row = {"messages": TURNS}
    same = conversation(tmp_path, {"prompt": "2 + 2?", "completion": "4"}).digest()
    others = [{"messages": TURNS * 2}, {"messages": [USER, {**ASSISTANT, "content": "5"}]}, {**row, "tools": [TOOL]}]
    digests = {conversation(tmp_path, other).digest() for other in others}
    assert len(same) == 16
    assert conversation(tmp_path, row).digest() == same
    assert len(digests | {same}) == 4


def test_a_plain_texts_digest_is_its_documents(tmp_path: Path):
    assert one(tmp_path, {"text": "größer"}).digest() == Document("größer", "", 0).digest()


def test_the_format_is_that_of_the_first_good_row(tmp_path: Path):
    path = write(tmp_path, "a string", {"messages": []}, {"text": " "}, {"prompt": "2 + 2?", "completion": "4"})
    examples, ledger = read(path, on_bad_row="skip")
    assert (len(examples), ledger.row_format) == (1, "prompt/completion")


def test_a_first_row_of_no_known_format_is_counted_where_bad_rows_are_skipped(tmp_path: Path):
    examples, ledger = read(write(tmp_path, {"title": "none"}, {"messages": TURNS}), on_bad_row="skip")
    assert len(examples) == 1
    assert {reason: tally.documents for reason, tally in ledger.bad_rows.items()} == {"unknown format": 1}


def test_strings_without_fields_are_refused_by_name(tmp_path: Path):
    path = write(tmp_path, "2 + 2?", "3 + 3?")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: a row must be a JSON object, not str; fix the row"):
        read(path)
    with pytest.raises(
        ValueError, match=r"no row to train on \(2 read, 2 bad: not an object\); .*:1: a row must be a JSON"
    ):
        read(path, on_bad_row="skip")


def test_a_source_without_examples_is_an_error_that_says_what_was_read(tmp_path: Path):
    assert "rows.jsonl: no row to train on (2 read, 2 empty)" in fault(tmp_path, {"text": ""}, {"text": " "})


def test_texts_beside_the_rows_of_a_folder_are_passed_over_and_counted(tmp_path: Path):
    write(tmp_path, {"prompt": "2 + 2?", "completion": "4"})
    (tmp_path / "README.md").write_text("About these rows.")
    examples, ledger = read(tmp_path)
    assert (len(examples), ledger.files, ledger.files_not_read) == (1, 1, {"README.md": 1})


def test_a_source_of_texts_alone_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="holds text without rows; rows are read from"):
        read(tmp_path)


def test_a_slice_takes_its_part_of_the_rows(tmp_path: Path):
    path = write(tmp_path, *({"text": text} for text in "abcd"))
    source = Source(path=str(path), slice="50%:100%")
    examples = list(iter_examples(source, "error", SourceLedger(path=str(path)), [].append))
    assert [example.where for example in examples] == [f"{path}:3", f"{path}:4"]


def test_an_account_from_before_row_formats_were_kept_still_loads():
    tree = SourceLedger(path="rows").to_dict()
    del tree["row_format"]
    assert SourceLedger.from_dict(tree).row_format is None


def test_a_pictures_address_beside_the_text_of_a_row_is_counted_as_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "see", "completion": "a", "image": "a.png"},
        {"prompt": "see", "completion": "b", "image": ""},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ledger = SourceLedger(path=str(path))
    list(iter_examples(Source(path=str(path)), "error", ledger, lambda line: None))
    assert ledger.notes == {"image of a row, which is not read: only text is": 1}
