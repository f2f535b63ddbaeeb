"""A sample is drawn from all rows alike, whatever their order, within its bounds; totals are of all rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtrain.config.data import Source
from llmtrain.data.quality import sample as module
from llmtrain.data.quality.items import CHOSEN, CUT_CHARS, PROMPT, REJECTED
from llmtrain.data.quality.sample import Reading, Sample, read_sample
from llmtrain.data.survey import Use


def reading(path: Path, rows: list[Any], use: Use | None = "pretrain") -> Reading:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Reading(Source(path=str(path)), use, True)


def numbered(path: Path, count: int) -> Reading:
    return reading(path, [{"text": f"text {number}"} for number in range(count)])


def test_every_row_is_as_likely_as_any_other(tmp_path: Path) -> None:
    each = [numbered(tmp_path / "rows.jsonl", 200)]
    counts = np.zeros(200)
    for seed in range(100):
        counts[list(read_sample(each, 50, seed).numbers)] += 1
    assert counts.sum() == 5000
    spread = ((counts - 25) ** 2 / 25).sum()  # about 150 for draws without replacement; 200 degrees of freedom
    assert spread < 210


def test_the_sample_of_a_seed_is_always_the_same_and_in_order(tmp_path: Path) -> None:
    each = [numbered(tmp_path / "rows.jsonl", 100)]
    first, again, other = (read_sample(each, 20, seed) for seed in (1, 1, 2))
    assert first.numbers == again.numbers == sorted(first.numbers) and first.numbers != other.numbers
    assert [item.text for item in first.items] == [f"text {number}" for number in first.numbers]


def test_totals_are_of_all_rows(tmp_path: Path) -> None:
    rows = [{"text": "four"}, {"text": "  "}, {"text": 3}, {"text": "eleven chars"}]
    found = read_sample([reading(tmp_path / "a.jsonl", rows), numbered(tmp_path / "b.jsonl", 5)], 2, 0)
    first, second = found.sources
    assert (found.num_items, len(found.items), found.is_whole) == (7, 2, False)
    assert (first.num_items, first.num_bytes, first.longest[0], second.num_items) == (2, 16, 12, 5)
    assert sum(first.lost.values()) == 2 and found.sizes.sum() == found.num_bytes == 16 + 5 * 6


def test_memory_is_bounded_by_characters_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_CHARS", 1000)
    each = [reading(tmp_path / "rows.jsonl", [{"text": "x" * 100} for _ in range(50)])]
    found = read_sample(each, 40, 0)
    assert len(found.items) == 10 and found.num_items == 50


def test_a_long_text_is_kept_by_its_beginning_and_counted_whole(tmp_path: Path) -> None:
    text = "a" * CUT_CHARS + "b" * 10
    found = read_sample([reading(tmp_path / "rows.jsonl", [{"text": text}, {"text": "a" * CUT_CHARS}])], 2, 0)
    assert [item.is_cut for item in found.items] == [True, False] and found.num_cut == 1
    assert found.items[0].num_bytes == CUT_CHARS + 10 and len(found.items[0].text) == CUT_CHARS
    assert found.digests[0] != found.digests[1]


def test_nothing_to_measure_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl: holds no text to measure; .*rows\.jsonl:1"):
        read_sample([reading(tmp_path / "rows.jsonl", [{"text": 3}])], 2, 0)


def one(tmp_path: Path, row: Any, use: Use | None) -> Any:
    found: Sample = read_sample([reading(tmp_path / "rows.jsonl", [row], use)], 2, 0)
    return found.items[0]


def test_the_texts_of_a_row_are_named_by_what_they_are(tmp_path: Path) -> None:
    pair = one(tmp_path, {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, "pairs")
    assert pair.parts == ((PROMPT, "2 + 2?"), (CHOSEN, "4"), (REJECTED, "5")) and pair.first_is_better is None
    chat = one(tmp_path, {"prompt": "2 + 2?", "completion": "4"}, "sft")
    assert chat.parts == (("user", "2 + 2?"), ("assistant", "4"))
    answer = one(tmp_path, {"prompt": "2 + 2?", "completion": "4", "label": False}, "kto")
    assert answer.desirable is False and answer.text == "2 + 2?\n4"
    assert one(tmp_path, {"a": "x y", "b": ["z", 3]}, None).parts == (("a", "x y"), ("b", "z"))


@pytest.mark.parametrize(("ranks", "is_first"), [([0, 1], True), ([1, 0], False)])
def test_the_place_of_the_better_answer_of_a_list_is_known(tmp_path: Path, ranks: list[int], is_first: bool) -> None:
    row = {"prompt": "2 + 2?", "responses": ["four", "five"], "ranks": ranks}
    assert one(tmp_path, row, "pairs").first_is_better is is_first


def test_the_place_in_a_list_from_the_best_to_the_worst_means_nothing(tmp_path: Path) -> None:
    assert one(tmp_path, {"prompt": "2 + 2?", "responses": ["four", "five"]}, "pairs").first_is_better is None


def test_rows_with_other_tools_or_another_label_are_other_rows(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("add", "add", "sum")]
    chats: list[Any] = [{"messages": talk, "tools": [tool]} for tool in tools] + [{"messages": talk}] * 2
    assert len(set(read_sample([reading(tmp_path / "chats.jsonl", chats, "sft")], 9, 0).digests.tolist())) == 3
    labelled: list[Any] = [{"messages": talk, "label": label} for label in (True, False, True)]
    assert len(set(read_sample([reading(tmp_path / "labelled.jsonl", labelled, "kto")], 9, 0).digests.tolist())) == 2
