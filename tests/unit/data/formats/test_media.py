"""Rows with images are refused by name, or skipped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_kinds import STORES

PLAIN = {"prompt": "2 + 2?", "chosen": "4"}
WITH_IMAGES: dict[str, dict[str, Any]] = {
    "a list of paths": {"prompt": "<image>What is it?", "chosen": "a cat", "images": ["cat.png"]},
    "an image as a table holds it": {
        "prompt": "What is it?",
        "chosen": "a cat",
        "image": {"bytes": "", "path": "c.png"},
    },
    "a path and its mark": {"prompt": "<image> What is it?", "chosen": "a cat", "image": "cat.png"},
}


def data(path: Path, rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"train": str(path), "eval_fraction": 0.0, "cache_dir": str(path.parent / "cache"), **keys}


@pytest.mark.parametrize("case", WITH_IMAGES)
def test_a_row_with_an_image_is_refused_by_the_name_of_its_field(case: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows.jsonl:2: its field images? holds .*, and only text is trained on"):
        STORES["chats"](data(tmp_path / "rows.jsonl", [PLAIN, WITH_IMAGES[case]]), print)


@pytest.mark.parametrize("case", WITH_IMAGES)
def test_where_bad_rows_are_skipped_it_is_counted(case: str, tmp_path: Path) -> None:
    lines: list[str] = []
    STORES["chats"](data(tmp_path / "rows.jsonl", [PLAIN, WITH_IMAGES[case]], on_bad_row="skip"), lines.append)
    assert any("1 bad row skipped: image" in line for line in lines)


@pytest.mark.parametrize("beside", [{"images": []}, {"image": None}, {"image": "https://example.org/cat.png"}])
def test_text_beside_an_address_or_nothing_is_text(beside: dict[str, Any], tmp_path: Path) -> None:
    STORES["chats"](data(tmp_path / "rows.jsonl", [PLAIN | beside]), print)
