"""The sections of before and after, of tasks over steps, and of runs compared by their evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from run_folders import write_run

from llmtrain.eval.before_after.answers import ANSWERS, REFUSES, TOKENS
from llmtrain.eval.tasks.results import (
    ACC,
    NATS_PER_TOKEN,
    Evaluation,
    ItemResult,
    Measure,
    TaskResult,
    save_evaluation,
)
from llmtrain.runs import before_after
from llmtrain.runs.record import read_run
from llmtrain.runs.report.before_after import before_and_after
from llmtrain.runs.report.over_time import measure_figure
from llmtrain.runs.report.report import write_report
from llmtrain.runs.report.tasks import tasks
from llmtrain.system.run_files import EVALUATION_FILE, after_path, before_path


def refuse(warning: str) -> None:
    raise AssertionError(warning)


def result(task: str, measures: Sequence[Measure], values: Sequence[dict[str, float]]) -> TaskResult:
    items = [ItemResult(task, str(number), "x", each) for number, each in enumerate(values)]
    return TaskResult(task, measures, items, {"source": "made up"})


def save(path: Path, *results: TaskResult, **model: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"path": "m", "tokenizer": "t", **model}
    save_evaluation(path, Evaluation(known, {each.task: each for each in results}))


def write_pair(run: Path, *, step: int = 10, asked: str = "same") -> None:
    """The loss falls by 0.5 on 40 documents, answers grow longer, refusals stay."""
    for path, shift, of_step in ((before_path(run), 0.0, 0), (after_path(run), 1.0, step)):
        held_out = result(
            "held_out",
            [NATS_PER_TOKEN],
            [{"nats_per_token": 20 - 5 * shift + n % 3, "tokens": 10.0} for n in range(40)],
        )
        answers = result(
            ANSWERS, [TOKENS, REFUSES], [{"tokens": 8.0 + 4 * shift + n % 2, "refuses": 0.0} for n in range(12)]
        )
        save(path, held_out, answers, step=of_step, asked=asked)


def test_the_pair_has_the_difference_its_interval_and_a_verdict(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert before_and_after([read_run(tmp_path / "run")]) is None
    write_pair(tmp_path / "run")
    found = before_after.changes_of(tmp_path / "run", step=10)
    assert found is not None
    loss, tokens, refuses = found.rows
    assert (loss.what, loss.verdict, loss.num_items) == ("held-out loss, nats per token", "better", 40)
    assert loss.difference == pytest.approx(-0.5) and loss.low <= -0.5 <= loss.high
    assert tokens.verdict == "higher" and refuses.verdict == "not distinguishable"
    page = write_report([tmp_path / "run"], warn=refuse).read_text()
    assert "Before and after training" in page and '<span style="color: var(--good)">better</span>' in page
    assert "evaluations/before.jsonl" in page and "whether refusing was right is not judged" in page


def test_a_pair_of_another_step_or_of_other_things_is_none(tmp_path: Path) -> None:
    write_pair(tmp_path / "run")
    assert before_after.changes_of(tmp_path / "run", step=9) is None
    save(before_path(tmp_path / "run"), step=0, asked="other")
    assert before_after.changes_of(tmp_path / "run") is None


def test_without_scipy_the_values_are_there_and_a_note_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(before_after, "has_scipy", lambda: False)
    write_pair(tmp_path / "run")
    found = before_after.changes_of(tmp_path / "run")
    assert found is not None and "need SciPy" in found.notes[-1]
    row = found.rows[0]
    assert (row.interval, row.verdict) == ("", "")
    assert (row.before, row.after) == pytest.approx((2.0975, 1.5975))


def test_tasks_are_drawn_over_steps(tmp_path: Path) -> None:
    rows = [
        {"step": step, "eval_loss": 1.0, "eval_task/arc_easy/acc": 0.4, "eval_task/arc_easy/acc_low": 0.3}
        | {"eval_task/arc_easy/acc_high": 0.5}
        for step in (0, 5, 10)
    ]
    write_run(tmp_path / "run", rows)
    page = write_report([tmp_path / "run"], warn=refuse).read_text()
    assert "arc_easy: acc" in page and "metrics.jsonl: eval_task/arc_easy/acc<" in page
    assert "arc_easy: acc_low" not in page and "guessing" not in page
    write_run(tmp_path / "guessed", [{**row, "eval_task/arc_easy/acc_chance": 0.25} for row in rows])
    page = write_report([tmp_path / "guessed"], warn=refuse).read_text()
    assert "guessing" in page and "arc_easy: acc_chance" not in page


def test_one_evaluation_has_its_step_on_the_axis_and_its_interval_as_a_line(tmp_path: Path) -> None:
    def drawn(**ends: float) -> str:
        row = {"step": 40, "eval_task/piqa/acc": 0.4, **{f"eval_task/piqa/acc_{end}": at for end, at in ends.items()}}
        folder = write_run(tmp_path / f"run{len(ends)}", [{**row, "eval_loss": 1.0}])
        return str(measure_figure([read_run(folder)], "eval_task/piqa/acc", "acc", is_share=True))

    with_interval, without = drawn(low=0.3, high=0.5), drawn()
    assert ">40<" in with_interval and ">40.02<" not in with_interval
    lines = [svg.count("stroke-opacity") for svg in (with_interval, without)]
    assert lines == [1, 0]


def test_runs_that_were_evaluated_are_compared(tmp_path: Path) -> None:
    for name, right in (("a", 2), ("b", 18), ("c", 3)):
        write_run(tmp_path / name)
        save(
            tmp_path / name / EVALUATION_FILE,
            result("piqa", [ACC], [{"acc": float(number < right)} for number in range(20)]),
        )
    records = [read_run(tmp_path / name) for name in "abc"]
    section = tasks(records)
    assert section is not None
    assert "b compared with a" in section.body and "b is better by 0.8000" in section.body
    assert "c compared with a" in section.body and "not distinguishable on 20 items" in section.body
    assert section.body.count("corrected for 2 comparisons") == 2
    two = tasks(records[:2])
    assert two is not None and "corrected for" not in two.body
    alone = tasks(records[:1])
    assert alone is not None and "Measured after training" in alone.body and "compared" not in alone.body
    save(tmp_path / "b" / EVALUATION_FILE, result("copa", [ACC], [{"acc": 1.0}]))
    other = tasks(records[:2])
    assert other is not None and "Not compared: no task is in both: piqa and copa." in other.body
