"""An evaluation that is interrupted goes on with the items that are missing."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import write_model

from llmtrain.eval.tasks import parts
from llmtrain.eval.tasks.measure import Asking, item_results, measure
from llmtrain.eval.tasks.opened import model_digest, opened_subject
from llmtrain.eval.tasks.parts import Unfinished, measured_by_parts
from llmtrain.eval.tasks.subject import Subject
from llmtrain.models.stops import Stops
from llmtrain.tasks.load import TASKS
from llmtrain.tasks.rows import TaskRow, TaskRows
from llmtrain.tasks.task import ChoiceItem
from llmtrain.tasks.winogender import item as pronoun

ASKING = Asking(lambda prompts, sampling: None, Stops())
MODEL = {"path": "m", "weights": "w"}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return opened_subject(str(write_model(tmp_path_factory.mktemp("model"), spread=0.3)), lambda line: None)[0]


def choices(count: int) -> TaskRows:
    items = [ChoiceItem((f"q{n}",) * 2, (" a", " bcd"), n % 2, (1, 3)) for n in range(count)]
    return TaskRows(TASKS["piqa"], "x", [TaskRow[object](each, str(n), "x", {}) for n, each in enumerate(items)], [])


def asked(monkeypatch: pytest.MonkeyPatch, most_parts: int = 1000) -> list[str]:
    """The keys of the items that are measured from here on; a signal comes after so many parts."""
    keys: list[str] = []
    num_parts = 0

    def watched(subject: Subject, task_rows: TaskRows, *rest: Any) -> Any:
        nonlocal num_parts
        if num_parts == most_parts:
            raise KeyboardInterrupt
        num_parts += 1
        keys.extend(row.key for row in task_rows.rows)
        return item_results(subject, task_rows, *rest)

    monkeypatch.setattr(parts, "item_results", watched)
    return keys


def test_items_that_were_measured_before_an_interruption_are_not_measured_again(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, output, lines = choices(40), tmp_path / "out.jsonl", list[str]()
    before = asked(monkeypatch, most_parts=1)
    with pytest.raises(KeyboardInterrupt):
        measured_by_parts(subject, rows, ASKING, Unfinished(output, MODEL), lines.append)
    assert len(before) == 16 and "16 items are in" in lines[-1]
    with (tmp_path / "out.jsonl.unfinished").open("a") as file:
        file.write('{"way": "torn')
    after = asked(monkeypatch)
    unfinished = Unfinished(output, MODEL)
    result = measured_by_parts(subject, rows, ASKING, unfinished, lines.append)
    assert sorted(before + after, key=int) == [row.key for row in rows.rows]
    assert any("16 items were measured before" in line for line in lines)
    assert any("to go" in line for line in lines)
    whole = measure(subject, rows, ASKING)
    assert whole is not None and [item.item for item in result.items] == [item.item for item in whole.items]
    for found, expected in zip(result.items, whole.items, strict=True):
        assert found.values == expected.values
        assert found.details["logprobs"] == pytest.approx(expected.details["logprobs"], abs=1e-4)
    written = (tmp_path / "out.jsonl.unfinished").read_text().splitlines()
    assert len([json.loads(line) for line in written]) == 41
    unfinished.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", ["model", "chat", "examples", "stops"])
def test_items_of_another_model_or_way_of_asking_are_measured_again(
    other: str, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, output = choices(5), tmp_path / "out.jsonl"
    measured_by_parts(subject, rows, ASKING, Unfinished(output, MODEL), lambda line: None)
    model = {**MODEL, "weights": "v"} if other == "model" else {**MODEL, "path": "moved"}
    asking = replace(ASKING, chat=other == "chat", stops=Stops((1,) if other == "stops" else ()))
    again = replace(rows, shots=rows.rows[:1]) if other == "examples" else rows
    keys = asked(monkeypatch)
    measured_by_parts(subject, again, asking, Unfinished(output, model), lambda line: None)
    assert len(keys) == 5


def test_items_that_another_process_writes_of_another_model_are_not_taken(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, output, other = choices(5), tmp_path / "out.jsonl", {**MODEL, "weights": "v"}
    first, second = Unfinished(output, MODEL), Unfinished(output, other)
    monkeypatch.setattr(parts, "FIRST_ROWS", 2)
    for each in (first, second):
        asked(monkeypatch, most_parts=1)
        with pytest.raises(KeyboardInterrupt):
            measured_by_parts(subject, rows, ASKING, each, lambda line: None)
    asked(monkeypatch)
    measured_by_parts(subject, rows, ASKING, first, lambda line: None)  # into the file that is the second's now
    keys = asked(monkeypatch)
    measured_by_parts(subject, rows, ASKING, Unfinished(output, other), lambda line: None)
    assert keys == ["2", "3", "4"]


def test_a_task_whose_code_is_in_no_file_is_measured_again(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = choices(5)
    rows = replace(rows, task=replace(rows.task, item=partial(rows.task.item)))
    for _ in range(2):
        keys = asked(monkeypatch)
        measured_by_parts(subject, rows, ASKING, Unfinished(tmp_path / "out.jsonl", MODEL), lambda line: None)
        assert len(keys) == 5


def test_rows_that_belong_together_are_measured_together(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "FIRST_ROWS", 1)
    monkeypatch.setattr(parts, "PART_SECONDS", 0.0)
    items = [
        pronoun({"sentid": f"{who}.guest.0.{gender}.txt", "sentence": f"The {who} ran as {word} saw."})
        for gender, word in (("male", "he"), ("female", "she"), ("neutral", "they"))
        for who in ("cook", "smith", "baker")
    ]
    made = [TaskRow[object](each, str(n), "x", {}) for n, each in enumerate(items)]
    rows = TaskRows(TASKS["winogender"], "x", made, [])
    keys = asked(monkeypatch)
    found = measured_by_parts(subject, rows, ASKING, Unfinished(tmp_path / "o", MODEL), lambda line: None)
    whole = measure(subject, rows, ASKING)
    assert keys == ["0", "3", "6", "1", "4", "7", "2", "5", "8"]
    assert whole is not None and [item.values for item in found.items] == [item.values for item in whole.items]
    lines = (tmp_path / "o.unfinished").read_text().splitlines(keepends=True)
    (tmp_path / "o.unfinished").write_text("".join(lines[:2]))  # killed within the first block
    keys = asked(monkeypatch)
    again = measured_by_parts(subject, rows, ASKING, Unfinished(tmp_path / "o", MODEL), lambda line: None)
    assert keys == ["0", "3", "6", "1", "4", "7", "2", "5", "8"]
    assert [item.values for item in again.items] == [item.values for item in whole.items]


def test_the_digest_of_a_model_is_that_of_what_it_computes(tmp_path: Path) -> None:
    model, same = (opened_subject(str(write_model(tmp_path / name)), lambda line: None)[0].model for name in "ab")
    digest = model_digest(model)
    assert digest == model_digest(same)
    with torch.no_grad():
        same.get_input_embeddings().weight[3, 5] += 1e-3
    assert digest != model_digest(same)
    assert model.config.rope_parameters["rope_theta"] != 5.0
    model.config.rope_parameters["rope_theta"] = 5.0  # such as a configuration edited by hand
    assert digest != model_digest(model)
