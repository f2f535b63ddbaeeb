"""Rows with a label -> answers: which are read, what becomes of the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmtrain.config.data import Source
from llmtrain.data.formats.labelled import Labelled, has_labels, iter_labelled
from llmtrain.data.formats.preferences import iter_preferences
from llmtrain.data.ledger import SourceLedger


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, **settings: Any) -> list[Labelled]:
    source = Source(path=str(path), **settings)
    return list(iter_labelled(source, "error", SourceLedger(path=str(path)), lambda line: None))


def row(number: int, label: bool | None = True) -> dict[str, Any]:
    return {"prompt": f"question {number}", "completion": "no" * (number + 1), "label": label}


ASKED, ANSWER = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}
EARLIER = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
SHAREGPT = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]


@pytest.mark.parametrize(
    ("fields", "settings", "num_prompt"),
    [
        ({"prompt": "hello", "completion": "hi", "label": True}, {}, 1),
        ({"prompt": [ASKED], "completion": [ANSWER], "label": True}, {}, 1),
        ({"messages": [*EARLIER, ASKED, ANSWER], "label": True}, {}, 3),
        ({"conversations": SHAREGPT, "kto_tag": True}, {}, 1),
        ({"instruction": "hello", "input": "", "output": "hi", "kto_tag": True}, {}, 1),
        ({"asked": "hello", "said": "hi", "good": True}, {"prompt": "asked", "completion": "said", "label": "good"}, 1),
    ],
    ids=["texts", "messages", "a dialogue", "ShareGPT", "Alpaca", "mapped fields"],
)
def test_the_label_of_a_row_of_any_format_is_of_its_last_answer(
    tmp_path: Path, fields: dict[str, Any], settings: dict[str, str], num_prompt: int
) -> None:
    (labelled,) = read(written(tmp_path / "rows.jsonl", [fields]), fields=settings)
    assert labelled.conversation.messages[-1]["content"] == "hi"
    assert (labelled.conversation.num_prompt, labelled.desirable, labelled.group) == (num_prompt, True, "hello")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a", "completion": "b"}, "rows.jsonl:2: no field is true or false"),
        ({"prompt": "a", "completion": "b", "label": "maybe"}, "rows.jsonl:2: 'label' holds 'maybe', which does not"),
        ({"prompt": "a", "completion": "b", "label": 7}, "rows.jsonl:2: 'label' holds 7, which does not say whether"),
        ({"prompt": "a", "completion": [ASKED], "label": True}, "rows.jsonl:2: the last message is not an answer"),
        ({"prompt": [ANSWER], "completion": [ANSWER], "label": 1}, "rows.jsonl:2: the prompt ends with an assistant's"),
        ({"prompt": "a", "completion": None, "label": False}, "rows.jsonl:2: 'completion' is missing or null"),
    ],
)
def test_a_row_without_a_labelled_answer_is_refused_with_its_line(tmp_path: Path, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path / "rows.jsonl", [row(0), fields]))


def test_a_source_without_a_good_row_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [row(0) | {"completion": None}])
    with pytest.raises(ValueError, match="no answer to train on"):
        list(iter_labelled(Source(path=str(path)), "skip", SourceLedger(path=""), lambda line: None))


def test_a_loss_over_pairs_says_who_takes_rows_with_a_label(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [row(0)])
    with pytest.raises(ValueError, match=r"set preference\.loss=kto"):
        list(iter_preferences(Source(path=str(path)), "error", SourceLedger(path=""), lambda line: None))


def test_answers_to_one_question_fall_into_one_split(tmp_path: Path) -> None:
    rows = [row(3), row(3) | {"completion": "other", "label": False}]
    first, second = read(written(tmp_path / "rows.jsonl", rows))
    assert first.digest() == second.digest()


def test_the_first_good_row_decides_whether_a_source_has_labels(tmp_path: Path) -> None:
    labelled = written(tmp_path / "rows.jsonl", [["no object"], row(0), row(1, label=None)])
    assert has_labels(Source(path=str(labelled)))
    assert not has_labels(Source(path=str(written(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "a"}]))))


def test_a_row_without_its_label_is_named_if_it_comes_first(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [row(0, label=None), row(1)])
    assert has_labels(Source(path=str(path)))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no field is true or false \(label, kto_tag\)"):
        read(path)
    ledger = SourceLedger(path=str(path))
    assert len(list(iter_labelled(Source(path=str(path)), "skip", ledger, lambda line: None))) == 1
    assert ledger.bad_rows["no label"].documents == 1


def test_the_format_is_reported_once_with_the_first_answer(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [row(0, label=False), row(1)])
    lines: list[str] = []
    list(iter_labelled(Source(path=str(path)), "error", SourceLedger(path=str(path)), lines.append))
    assert lines == [
        f"{path}: labelled prompt/completion rows (fields prompt, completion); the first, undesirable: "
        'user "question 0" -> assistant "no"'
    ]


@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (1, 0),
        (1.0, 0.0),
        ("true", "false"),
        ("True", "False"),
        ("yes", "no"),
        ("1", "-1"),
        ("desirable", "undesirable"),
    ],
)
def test_labels_are_read_however_they_are_written(tmp_path: Path, name: str, good: Any, bad: Any) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a", name: label} for i, label in enumerate((good, bad, good))]
    path = written(tmp_path / "rows.jsonl", rows)
    assert has_labels(Source(path=str(path)))
    assert [each.desirable for each in read(path)] == [True, False, True]


def test_a_pair_with_some_other_label_is_a_pair(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "label": "physics"}
    assert not has_labels(Source(path=str(written(tmp_path / "rows.jsonl", [row]))))


def test_the_weight_of_a_row_is_that_of_its_answer(tmp_path: Path) -> None:
    rows = [{**row(i), "weight": weight} for i, weight in enumerate((None, 0.5, 0, 2))]
    assert [each.weight for each in read(written(tmp_path / "rows.jsonl", rows))] == [1, 0.5, 2]
