"""Small rows of instruction data, written to a file and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.data import Source
from llmtrain.data.formats.instructions import Example, iter_examples
from llmtrain.data.formats.messages import Conversation
from llmtrain.data.ledger import SourceLedger

USER, ASSISTANT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TURNS = [USER, ASSISTANT]
SHAREGPT = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
HH = "\n\nHuman: 2 + 2?\n\nAssistant: 4"
GUANACO = "### Human: 2 + 2? ### Assistant: 4"
TREE = {"text": "2 + 2?", "role": "prompter", "replies": [{"text": "4", "role": "assistant", "replies": []}]}


def read(
    path: Path, on_bad_row: str = "error", said: list[str] | None = None, **fields: str
) -> tuple[list[Example], SourceLedger]:
    """The examples of a source and its account, which is checked."""
    ledger = SourceLedger(path=str(path))
    say = [].append if said is None else said.append
    examples = list(iter_examples(Source(path=str(path), fields=fields), on_bad_row, ledger, say))
    for example in examples:
        ledger.kept["train"].add(example.num_bytes)
    ledger.check()
    return examples, ledger


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(folder: Path, row: Any, **fields: str) -> Example:
    """The only example of a file of one row."""
    (example,) = read(write(folder, row), **fields)[0]
    return example


def conversation(folder: Path, row: Any, **fields: str) -> Conversation:
    example = one(folder, row, **fields)
    assert isinstance(example, Conversation)
    return example


def fault(folder: Path, *rows: Any, **fields: str) -> str:
    """The one line that a file's rows raise, less the folder's name."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as raised:
        read(write(folder, *rows), **fields)
    return str(raised.value).replace(f"{folder}/", "")


def read_source(folder: Path, *rows: Any, on_bad_row: str = "error", **source: Any) -> tuple[list[Example], list[str]]:
    """The examples of rows that a source with these keys names, and what is said of them."""
    said: list[str] = []
    given = Source(path=str(write(folder, *rows)), **source)
    return list(iter_examples(given, on_bad_row, SourceLedger(path=given.path), said.append)), said
