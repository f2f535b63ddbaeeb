"""A prompt beside whole dialogues that holds something else is refused by name, in tuning and in preferences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.data import Source
from llmtrain.data.formats.instructions import iter_examples
from llmtrain.data.formats.preferences import iter_preferences
from llmtrain.data.ledger import SourceLedger

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}
GOOD, BAD = ({"role": "assistant", "content": content} for content in ("4", "5"))
MARKED = "\n\nHuman: 2 + 2?\n\nAssistant:"
WHOLE: dict[str, Any] = {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}
READERS = [iter_examples, iter_preferences]


def read(folder: Path, row: dict[str, Any], reader: Any) -> int:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return len(list(reader(Source(path=str(path)), "error", SourceLedger(path=str(path)), lambda line: None)))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "prompt",
    [
        {"prompt": "3 + 3?"},
        {"question": "2 + 2? And then?"},
        {"instruction": "Add."},
        {"messages": [{"role": "user", "content": "3 + 3?"}, GOOD]},
        {"prompt": [{"role": "system", "content": "Be long."}, USER]},
        {"conversations": [{"from": "human", "value": "3 + 3?"}]},
    ],
    ids=str,
)
def test_another_prompt_is_refused(tmp_path: Path, prompt: dict[str, Any], reader: Any) -> None:
    name = next(iter(prompt))
    several = "|the row is in 2 formats" if name in ("messages", "conversations") and reader is iter_examples else ""
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: ('{name}' holds .* which is not in the dialogue{several})"):
        read(tmp_path, prompt | WHOLE, reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"prompt": "2 + 2?"},
        {"prompt": " 2  +\n2? "},
        {"prompt": [SYSTEM, USER]},
        {"prompt": MARKED},
        {"prompt": None},
        {"prompt": ""},
    ],
    ids=str,
)
def test_the_same_prompt_is_read(tmp_path: Path, prompt: dict[str, Any], reader: Any) -> None:
    assert read(tmp_path, prompt | WHOLE, reader) == 1


@pytest.mark.parametrize("reader", READERS)
def test_dialogues_as_marked_text_are_compared_too(tmp_path: Path, reader: Any) -> None:
    marked = {"chosen": f"{MARKED} 4", "rejected": f"{MARKED} 5"}
    assert read(tmp_path, {"prompt": MARKED, **marked}, reader) == 1
    with pytest.raises(ValueError, match="'prompt' holds"):
        read(tmp_path, {"prompt": "3 + 3?", **marked}, reader)
