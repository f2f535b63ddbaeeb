"""Rows -> prompts: what comes before an answer, with the system prompt and the tools of the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import CHATML, write_model
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.config.rl import PromptDataConfig
from llmtrain.data.formats.prompts import Prompt, Prompts, load_prompts

TOOLS = [{"type": "function", "function": {"name": "search", "description": "Looks up."}}]
WITH_TOOLS = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + CHATML


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    made: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(write_model(tmp_path_factory.mktemp("model")))
    made.chat_template = WITH_TOOLS
    return made


def prompt_of(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, folder: Path, **fields: str) -> Prompt:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    source = {"path": str(path), "fields": fields}
    data = PromptDataConfig.model_validate({"train": [source], "eval_fraction": 0.0, "on_bad_row": "error"})
    prompts = load_prompts(data, tokenizer, max_new_tokens=8, report=lambda line: None)
    return prompts.train[0][0]


def loaded(path: Path, tokenizer: PreTrainedTokenizerFast, on_bad_row: str = "error") -> Prompts:
    data = PromptDataConfig.model_validate({"train": str(path), "eval_fraction": 0.0, "on_bad_row": on_bad_row})
    return load_prompts(data, tokenizer, max_new_tokens=8, report=lambda line: None)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["prompt", "question", "query"])
def test_a_system_prompt_in_a_separate_field_comes_first(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    prompt = prompt_of({"system": "Be short.", name: "Why?"}, tokenizer, tmp_path)
    assert [message["role"] for message in prompt.messages] == ["system", "user"]  # type: ignore[index]
    assert "Be short." in tokenizer.decode(prompt.ids)


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "Why?"},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
        {"question": "Why?", "answer": "So."},
    ],
)
@pytest.mark.parametrize("written", [TOOLS, json.dumps(TOOLS)], ids=["list", "json"])
def test_tools_reach_the_template(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, asked: dict[str, Any], written: Any
) -> None:
    prompt = prompt_of({"tools": written, **asked}, tokenizer, tmp_path)
    assert tokenizer.decode(prompt.ids).startswith("[search]")
    assert prompt.row["tools"] == written


def test_tools_of_another_name_are_in_the_row_as_tools(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    row = {"functions": TOOLS, "prompt": "Why?"}
    prompt = prompt_of(row, tokenizer, tmp_path, tools="functions")
    assert prompt.row == {"tools": TOOLS, **row}


def test_a_prompt_that_ends_with_an_answer_is_a_bad_row(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: 'prompt' ends with an answer"):
        prompt_of({"prompt": messages}, tokenizer, tmp_path)


def test_a_message_and_its_system_prompt_need_a_template(tmp_path: Path) -> None:
    plain = AutoTokenizer.from_pretrained(write_model(tmp_path / "model", chat=False))
    for extra, what in (({"system": "Be short."}, "several messages need"), ({"tools": TOOLS}, "tools need")):
        with pytest.raises(ValueError, match=rf"{what} a chat template \(data\.chat_template\)"):
            prompt_of({"prompt": "Why?", **extra}, plain, tmp_path)


def test_a_readme_beside_the_rows_of_a_folder_is_left_out(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", {"prompt": "Why?"})
    (tmp_path / "README.md").write_text("# About these prompts")
    prompts = loaded(tmp_path, tokenizer)
    assert len(prompts.train[0]) == 1
    assert prompts.ledger.train[0].files_not_read == {"README.md": 1}


def test_a_text_file_holds_no_prompts(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Why?")
    with pytest.raises(ValueError, match=r"\A[^\n]*prompts\.txt: holds text without rows; rows are read from [^\n]*\Z"):
        loaded(tmp_path / "prompts.txt", tokenizer)


@pytest.mark.parametrize("first", [True, False], ids=["the first row", "a later row"])
def test_a_row_of_no_known_format_stops_the_run_or_is_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, first: bool
) -> None:
    rows = [{"title": "none"}, {"prompt": "Why?"}, {"prompt": "How?"}]
    path = write(tmp_path / "rows.jsonl", *(rows if first else rows[1:] + rows[:1]))
    with pytest.raises(ValueError, match=rf"rows\.jsonl:{1 if first else 3}: "):
        loaded(path, tokenizer)
    prompts = loaded(path, tokenizer, on_bad_row="skip")
    assert len(prompts.train[0]) == 2
    assert [tally.documents for tally in prompts.ledger.train[0].bad_rows.values()] == [1]


def test_the_first_row_decides_the_format_of_all(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    path = write(tmp_path / "rows.jsonl", {"messages": chat}, {"messages": chat, "prompt": "How?"}, {"prompt": "Who?"})
    prompts = loaded(path, tokenizer, on_bad_row="skip")
    assert [prompt.messages[-1]["content"] for prompt in prompts.train[0]] == ["Why?", "Why?"]  # type: ignore[index]
    assert prompts.ledger.train[0].row_format == "messages"
    assert {reason: tally.documents for reason, tally in prompts.ledger.train[0].bad_rows.items()} == {
        "missing field": 1
    }


def test_half_a_surrogate_pair_is_a_bad_row(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "\ud800"})
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: a string holds \\ud800, half a surrogate pair"):
        loaded(path, tokenizer)


def test_the_format_is_reported_once_with_the_first_prompt(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": "Why?"}, {"question": "How?"})
    data = PromptDataConfig.model_validate({"train": str(path), "eval_fraction": 0.0})
    lines: list[str] = []
    load_prompts(data, tokenizer, max_new_tokens=8, report=lines.append)
    assert [line for line in lines if "the first" in line] == [
        f'{path}: prompts (field question); the first: user "Why?"'
    ]
