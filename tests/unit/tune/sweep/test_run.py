"""One run of a trial: which of its evaluations counts, and how its end is understood."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmtrain.tune.child import Stopped
from llmtrain.tune.sweep.run import RunPlan, RunResult, run_to_end


def plan_of(folder: Path, command: list[str], **options: Any) -> RunPlan:
    given: dict[str, Any] = {"metric": "eval_loss", "takes_best": False} | options
    return RunPlan(command=command, folder=folder / "run", log=folder / "log.txt", **given)


def ended(folder: Path, rows: Sequence[tuple[float | None, float]], **options: Any) -> RunResult:
    """What counts of a finished run with these losses and accuracies."""
    (folder / "run").mkdir()
    lines = [
        json.dumps({"step": step, "eval_loss": loss, "eval_accuracy": accuracy})
        for step, (loss, accuracy) in enumerate(rows)
    ]
    (folder / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "run" / "finished.yaml").write_text("{}\n")
    return run_to_end(plan_of(folder, [], **options), lambda _step, _value: False, lambda: False)


ROWS = [(3.0, 0.5), (1.0, 0.6), (2.0, 0.9), (2.5, 0.8)]


@pytest.mark.parametrize(
    ("takes_best", "metric", "score"),
    [(False, "eval_loss", 2.5), (False, "eval_accuracy", 0.8), (True, "eval_loss", 1.0), (True, "eval_accuracy", 0.6)],
)
def test_the_evaluation_counts_whose_model_is_exported(
    tmp_path: Path, takes_best: bool, metric: str, score: float
) -> None:
    assert ended(tmp_path, ROWS, takes_best=takes_best, metric=metric).score == score


def test_a_run_that_only_got_worse_has_the_score_that_it_began_with(tmp_path: Path) -> None:
    assert ended(tmp_path, [(1.0, 0.5), (2.0, 0.4), (None, 0.1)], takes_best=True).score == 1.0


def test_a_loss_that_is_not_finite_in_the_end_is_a_failure(tmp_path: Path) -> None:
    result = ended(tmp_path, [(1.0, 0.5), (None, 0.1)])
    assert (result.state, result.error) == ("failed", "eval_loss is not finite at step 1: the run diverged")


def test_a_run_that_a_signal_to_all_processes_has_ended_is_stopped_and_has_not_failed(tmp_path: Path) -> None:
    """Slurm signals every process of a job at its end."""
    plan = plan_of(tmp_path, ["sh", "-c", f"touch {tmp_path}/asked; kill -TERM $$"])
    with pytest.raises(Stopped):
        run_to_end(plan, lambda _step, _value: False, (tmp_path / "asked").exists)
