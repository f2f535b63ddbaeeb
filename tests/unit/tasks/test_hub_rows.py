"""Rows as the hub has them become the prompts that lm-evaluation-harness 0.4.13 makes of them (recorded from it)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.data import Source
from llmtrain.tasks.load import TASKS
from llmtrain.tasks.rows import read_task
from llmtrain.tasks.task import ChoiceItem, ContinuationItem

HELLASWAG: list[tuple[dict[str, Any], str, list[str]]] = [
    (
        {
            "ind": 14,
            "activity_label": "Wakeboarding",
            "ctx_a": "A girl is pulled over a lake on a rope.",
            "ctx_b": "she",
            "ctx": "A girl is pulled over a lake on a rope. she",
            "endings": ["lets go and sinks.", "is shown in a kitchen.", "  jumps over a wave.", "reads [step] a book."],
            "source_id": "activitynet~v_1",
            "split": "val",
            "split_type": "indomain",
            "label": "2",
        },
        "Wakeboarding: A girl is pulled over a lake on a rope. She",
        ["lets go and sinks.", "is shown in a kitchen.", "jumps over a wave.", "reads a book."],
    ),
    (
        {
            "ind": 15,
            "activity_label": "Home and Garden",
            "ctx_a": "[header] How to dry a wet book [title] Let it drip. [step] Hold it by its spine, over a sink.",
            "ctx_b": "",
            "ctx": "[header] How to dry a wet book [title] Let it drip. [step] Hold it by its spine, over a sink.",
            "endings": [
                "[title] Put paper between the pages. [step] Take a sheet for every twenty.",
                "Read it.",
                "[substeps] Boil it. Then freeze it.",
                "Fan the pages [title] gently.",
            ],
            "source_id": "wikihow~1",
            "split": "val",
            "split_type": "zeroshot",
            "label": "0",
        },
        "Home and Garden: How to dry a wet book. Let it drip. Hold it by its spine, over a sink.",
        [
            " Put paper between the pages. Take a sheet for every twenty.",
            "Read it.",
            " Boil it. Then freeze it.",
            "Fan the pages. gently.",
        ],
    ),
]
LAMBADA = [
    (
        "a guardian angel . `` be safe . '' i look at the statue",
        "a guardian angel . `` be safe . '' i look at the",
        " statue",
    ),
    ("two  spaces  here", "two  spaces ", " here"),
    ("a line\nand another one", "a line\nand another", " one"),
]


def read(task: str, row: dict[str, Any], folder: Path) -> object:
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n")
    (found,) = read_task(TASKS[task], Source(path=str(folder / "rows.jsonl")), limit=None).rows
    return found.item


@pytest.mark.parametrize(("row", "query", "endings"), HELLASWAG, ids=["activitynet", "wikihow"])
def test_hellaswag(row: dict[str, Any], query: str, endings: list[str], tmp_path: Path) -> None:
    found = read("hellaswag", row, tmp_path)
    assert isinstance(found, ChoiceItem)
    assert found.contexts == (query,) * 4
    assert found.continuations == tuple(f" {ending}" for ending in endings)
    assert (found.gold, found.lengths) == (int(row["label"]), tuple(map(len, endings)))


@pytest.mark.parametrize(("text", "context", "continuation"), LAMBADA)
def test_lambada(text: str, context: str, continuation: str, tmp_path: Path) -> None:
    assert read("lambada", {"text": text}, tmp_path) == ContinuationItem(context, continuation)


def test_a_row_of_hellaswags_test_split_has_no_label_and_is_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: not in the form of hellaswag: field 'label'"):
        read("hellaswag", {**HELLASWAG[0][0], "label": ""}, tmp_path)
