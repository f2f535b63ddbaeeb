"""Who speaks and what is said, whatever a data set calls it; calls and messages as older files and CSV have them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from instruction_rows import conversation, fault, read_source, write
from pydantic import ValidationError

from llmtrain.config.data import Source
from llmtrain.data.formats.instructions import iter_examples
from llmtrain.data.formats.preferences import iter_preferences
from llmtrain.data.ledger import SourceLedger

CHAT = [("user", "2 + 2?"), ("assistant", "4")]


def pairs(messages: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize(
    ("asks", "answers"),
    [("Human", "Assistant"), ("USER", "CHATBOT"), ("user", "model"), ("human", "AI"), ("prompter", "bot")],
)
@pytest.mark.parametrize(
    ("role_key", "content_key"),
    [("role", "content"), ("from", "value"), ("speaker", "text"), ("role", "text"), ("author", "content")],
)
def test_well_known_speakers_and_keys_are_read(
    tmp_path: Path, asks: str, answers: str, role_key: str, content_key: str
) -> None:
    turns = [{role_key: asks, content_key: "2 + 2?"}, {role_key: answers, content_key: "4"}]
    found = conversation(tmp_path, {"messages": turns})
    assert pairs(found.messages) == CHAT
    assert all(message.keys() == {"role", "content"} for message in found.messages)


@pytest.mark.parametrize("field", ["conversation", "dialog", "dialogue", "turns"])
def test_a_chat_is_found_under_the_names_that_data_sets_give_it(tmp_path: Path, field: str) -> None:
    row = {field: [{"speaker": "Human", "text": "2 + 2?"}, {"speaker": "AI", "text": "4"}]}
    assert pairs(conversation(tmp_path, row).messages) == CHAT


@pytest.mark.parametrize("role", ["function", "ipython", "tool", "observation", "Tool_Response"])
def test_what_tools_give_back_is_a_tool_message(tmp_path: Path, role: str) -> None:
    turns = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 2, "b": 2}'}},
        {"role": role, "name": "add", "content": "4"},
        {"role": "assistant", "content": "4"},
    ]
    messages = conversation(tmp_path, {"messages": turns}).messages
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    (call,) = messages[1]["tool_calls"]
    assert call == {"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
    assert "function_call" not in messages[1]


@pytest.mark.parametrize("role", ["function_call", "tool_call", "Function-Call"])
def test_a_speaker_that_calls_is_the_assistant(tmp_path: Path, role: str) -> None:
    turns = [{"from": "human", "value": "2 + 2?"}, {"from": role, "value": '{"name": "add", "arguments": {}}'}]
    messages = conversation(tmp_path, {"conversations": turns}).messages
    assert messages[1]["tool_calls"][0]["function"]["name"] == "add"


def test_a_message_with_both_forms_of_a_call_is_refused(tmp_path: Path) -> None:
    call = {"name": "add", "arguments": "{}"}
    turns = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "function_call": call, "tool_calls": [{"function": call}]},
    ]
    assert "has both tool_calls and function_call" in fault(tmp_path, {"messages": turns})


def test_the_functions_of_older_files_are_the_tools(tmp_path: Path) -> None:
    function = {"name": "add", "parameters": {"type": "object"}}
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "4"}]}
    found = conversation(tmp_path, row | {"functions": [function]})
    assert found.tools == ({"type": "function", "function": function},)
    assert conversation(tmp_path, row | {"functions": "calculus"}).tools == ()


@pytest.mark.parametrize(
    ("turn", "keys"),
    [
        ({"who": "customer", "said": "2 + 2?"}, {"role_key": "who", "content_key": "said"}),
        ({"role": "Customer", "content": "2 + 2?"}, {}),
        ({"author": {"role": "customer"}, "body": "2 + 2?"}, {"role_key": "author.role", "content_key": "body"}),
    ],
)
def test_a_source_maps_its_speakers_and_keys(tmp_path: Path, turn: dict[str, Any], keys: dict[str, str]) -> None:
    answer = json.loads(
        json.dumps(turn).replace("customer", "agent").replace("Customer", "Agent").replace("2 + 2?", "4")
    )
    roles = {"customer": "user", "agent": "assistant"}
    (found,), _ = read_source(tmp_path, {"messages": [turn, answer]}, roles=roles, **keys)
    assert pairs(found.messages) == CHAT
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: message 0 of 'messages' has"):
        read_source(tmp_path, {"messages": [turn, answer]}, **keys)


def test_speakers_may_be_numbers_and_a_key_that_no_turn_has_is_refused(tmp_path: Path) -> None:
    row = {"messages": [{"who": 1, "text": "2 + 2?"}, {"who": 2, "text": "4"}], "tools": [{"name": "f", "who": 1}]}
    roles = {"1": "user", "2": "assistant"}
    (found,), _ = read_source(tmp_path, row, roles=roles, role_key="who")
    assert pairs(found.messages) == CHAT  # type: ignore[union-attr]
    assert found.tools[0]["function"]["who"] == 1  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no message of 'messages' has the key 'whom' \(the source's"):
        read_source(tmp_path, row, roles=roles, role_key="whom")


def test_an_unknown_speaker_is_refused_with_the_row_and_what_to_set(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "?"}, {"role": role, "content": "4"}]} for role in ("ai", "clerk")
    ]
    message = fault(tmp_path, *rows)
    assert message.startswith("rows.jsonl:2: message 1 of 'messages' has the role 'clerk', which is none of system, ")
    assert "source's roles, such as roles: {clerk: user}" in message


def test_a_role_that_no_template_has_is_refused_in_the_configuration() -> None:
    with pytest.raises(ValidationError, match=r"roles\.customer"):
        Source(path="rows.jsonl", roles={"customer": "client"})


def test_the_mapping_reaches_pairs_too(tmp_path: Path) -> None:
    asked = [{"who": "customer", "said": "2 + 2?"}]
    row = {"chosen": [*asked, {"who": "agent", "said": "4"}], "rejected": [*asked, {"who": "agent", "said": "5"}]}
    source = Source(
        path=str(write(tmp_path, row)),
        roles={"customer": "user", "agent": "assistant"},
        role_key="who",
        content_key="said",
    )
    (pair,) = iter_preferences(source, "error", SourceLedger(path=source.path), lambda line: None)
    assert pairs(pair.chosen.messages) == CHAT
    assert pairs(pair.rejected.messages) == [CHAT[0], ("assistant", "5")]


@pytest.mark.parametrize("written", [json.dumps, str], ids=["JSON", "Python"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "answers"])
def test_messages_in_the_cells_of_a_table_are_read_and_it_is_said(tmp_path: Path, written: Any, whole: bool) -> None:
    asked = [{"role": "user", "content": "2 + 2?"}]
    before = asked if whole else []
    row = {name: written([*before, {"role": "assistant", "content": text}]) for name, text in CHOSEN.items()}
    row |= {} if whole else {"prompt": written(asked)}
    said: list[str] = []
    source = Source(path=str(_table(tmp_path, row)))
    (pair,) = iter_preferences(source, "error", SourceLedger(path=source.path), said.append)
    assert pairs(pair.chosen.messages) == CHAT
    assert pairs(pair.rejected.messages) == [CHAT[0], ("assistant", "5")]
    assert len(said) == 1 and "messages are written as text in " in said[0] and "chosen" in said[0]


CHOSEN = {"chosen": "4", "rejected": "5"}


@pytest.mark.parametrize("answer", ['[{"x": 1}]', '{"role": "none"}', "[1, 2]", "[{", '[{"from": "a@b.c", "to": "d"}]'])
def test_an_answer_that_is_other_json_stays_text(tmp_path: Path, answer: str) -> None:
    row = {"prompt": "2 + 2?", "chosen": answer, "rejected": "5"}
    source = Source(path=str(_table(tmp_path, row)))
    said: list[str] = []
    (pair,) = iter_preferences(source, "error", SourceLedger(path=source.path), said.append)
    assert pairs(pair.chosen.messages) == [CHAT[0], ("assistant", answer)]
    assert "written as text" not in said[0]


def test_a_chat_in_the_cell_of_a_table_is_read(tmp_path: Path) -> None:
    turns = [{"role": role, "content": content} for role, content in CHAT]
    source = Source(path=str(_table(tmp_path, {"messages": json.dumps(turns)})))
    (found,) = iter_examples(source, "error", SourceLedger(path=source.path), lambda line: None)
    assert pairs(found.messages) == CHAT  # type: ignore[union-attr]


def test_what_a_question_is_about_is_part_of_it(tmp_path: Path) -> None:
    row = {"question": "Who?", "context": "Ann sang.", "answer": "Ann"}
    (found,), said = read_source(tmp_path, row)
    assert pairs(found.messages) == [("user", "Who?\nAnn sang."), ("assistant", "Ann")]  # type: ignore[union-attr]
    assert "(fields question, context, answer)" in said[0]
    (found,), _ = read_source(tmp_path, row | {"input": "At ten."})
    assert found.messages[0]["content"] == "Who?\nAt ten.\nAnn sang."  # type: ignore[union-attr]


def _table(folder: Path, row: dict[str, str]) -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    return path


def test_a_role_that_no_message_has_is_said_once_all_are_read(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "customer", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "Agent", "content": "Hello"}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for more, expected in (({}, 0), ({"agnet": "assistant", "Boss": "user"}, 1)):
        roles = {"Customer": "user", "agent": "assistant", **more}
        source = Source.model_validate({"path": str(path), "roles": roles})
        said: list[str] = []
        list(iter_examples(source, "error", SourceLedger(path=source.path), said.append))
        warned = [line for line in said if "no message is of" in line]
        assert len(warned) == expected and all("of agnet, boss:" in line for line in warned)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_an_answer_with_two_thoughts_is_refused(tmp_path: Path, key: str) -> None:
    thinks = "<think>\nsky\n</think>\n\nHi"
    answer = {"role": "assistant", "content": thinks, key: "the sky"}
    row = {"messages": [{"role": "user", "content": "x"}, answer]}
    assert f"has a thought in {key} and another in its content" in fault(tmp_path, row)
    for content in ("<think>\n\n</think>\n\nHi", "Hi <think> there"):
        row["messages"][1] = answer | {"content": content}
        read_source(tmp_path, row)
