"""A search ends with the same trials however it is stopped, killed and shared; bad trials are stopped and shown."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_sweep
import yaml
from tiny_run import fork

from llmtrain.system.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED
from llmtrain.tune.sweep.request import Budget
from llmtrain.tune.sweep.study import TrialRecord

pytestmark = pytest.mark.timeout(600)  # several real runs each, also on a slow machine

STEP_SECONDS = 0.1  # so that a run can be killed before its end


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tiny_sweep.write_inputs(tmp_path / "given")


def outcome(records: list[TrialRecord]) -> list[tuple[Any, ...]]:
    """What must be the same of a sweep left alone and of one that was killed."""
    return [(record.number, dict(record.values), record.state, record.score) for record in records]


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_a_killed_sweep_continued_by_two_processes_ends_with_the_trials_of_one_left_alone(
    tmp_path: Path, config: Path, sampler: str
) -> None:
    options = {"sampler": sampler, "budget": Budget(None if sampler == "grid" else 9, None, None)}
    tiny_sweep.run(tiny_sweep.request(config, tmp_path / "alone", **options))
    alone = tiny_sweep.records(tmp_path / "alone")
    assert len(alone) == 9
    assert all(record.is_finished for record in alone)

    folder = tmp_path / "shared"
    asked = tiny_sweep.request(config, folder, **options)
    first = fork(tiny_sweep.run_forked, asked, STEP_SECONDS, output=tmp_path / "first")
    assert first.wait_until(lambda: (folder / "trials" / "0003" / "metrics.jsonl").exists())
    assert first.kill().code == -signal.SIGKILL
    others = [fork(tiny_sweep.run_forked, asked, STEP_SECONDS, output=tmp_path / name) for name in ("second", "third")]
    ended = [other.wait() for other in others]
    assert [end.code for end in ended] == [0, 0], ended
    assert outcome(tiny_sweep.records(folder)) == outcome(alone)
    assert sorted(path.name for path in (folder / "trials").iterdir()) == [f"{number:04d}" for number in range(9)]
    assert not list(folder.glob("trials/*/doubled"))
    starts = [len(path.read_text().split()) for path in sorted(folder.glob("trials/*/starts"))]
    assert sum(starts) <= 10, "only the trial that was killed starts twice"
    assert all(end.out.count("starts") > 0 for end in ended), "both took part"


def test_several_tpe_processes_try_no_setting_twice(tmp_path: Path) -> None:
    config = tiny_sweep.write_inputs(
        tmp_path / "given", {"optim.lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "train.steps": [2, 3]}
    )
    asked = tiny_sweep.request(config, tmp_path / "sweep", sampler="tpe", budget=Budget(10, None, None))
    sweeps = [fork(tiny_sweep.run_forked, asked, output=tmp_path / name) for name in ("one", "two")]
    assert [sweep.wait().code for sweep in sweeps] == [0, 0]
    records = tiny_sweep.records(tmp_path / "sweep")
    assert len({yaml.safe_dump(dict(record.values)) for record in records}) == len(records) == 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGUSR1, EXIT_SAVED)])
def test_a_stopped_sweep_saves_its_run_and_is_continued_by_the_same_command(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    config = tiny_sweep.write_inputs(tmp_path / "given", steps=20)
    asked = tiny_sweep.request(config, tmp_path / "sweep", budget=Budget(2, None, None))
    sweep = fork(tiny_sweep.run_forked, asked, STEP_SECONDS, output=tmp_path / "first")
    assert sweep.wait_until(lambda: (tmp_path / "sweep" / "trials" / "0001" / "metrics.jsonl").exists())
    sweep.send(number)
    ended = sweep.wait()
    assert ended.code == code
    assert "stopped; the same command continues the sweep" in ended.out
    assert not list((tmp_path / "sweep").glob("trials/*/running")), "its run has ended by itself"
    said = tiny_sweep.run(asked)
    assert "trial 1 taken up where it was left" in said
    assert [record.state for record in tiny_sweep.records(tmp_path / "sweep")] == ["finished"] * 2


def test_bad_trials_are_stopped_and_good_ones_are_not(tmp_path: Path) -> None:
    rates = [1e-3, 2e-3, 5e-4, 8e-4, 1e-3 * 1.5, 1e-5, 0.9e-3, 1e-1]
    config = tiny_sweep.write_inputs(tmp_path / "given", {"optim.lr": rates}, steps=15)
    asked = tiny_sweep.request(config, tmp_path / "sweep", sampler="grid", budget=Budget(None, None, None), prunes=True)
    ended = fork(tiny_sweep.run_forked, asked, STEP_SECONDS, output=tmp_path / "out").wait()
    assert ended.code == 0, ended
    records = tiny_sweep.records(tmp_path / "sweep")
    bad = {record.values["optim.lr"] for record in records if record.state == "pruned"}
    assert {1e-5, 1e-1} <= bad
    assert not bad & set(rates[:4]), "the first trials have nothing to be compared with"
    assert all(record.steps < 15 for record in records if record.state == "pruned")
    assert "worse than half of the trials at that step" in ended.out


def test_failing_trials_are_shown_and_the_others_count(tmp_path: Path) -> None:
    config = tiny_sweep.write_inputs(tmp_path / "given", {"optim.lr": [1e-3, 0.3, 0.6]})
    said = tiny_sweep.run(
        tiny_sweep.request(config, tmp_path / "sweep", sampler="grid", budget=Budget(None, None, None))
    )
    assert "trial 1 failed: RuntimeError: planted crash" in said
    assert "trial 2 failed: optim.lr is too large for planted data" in said
    assert "best: trial 0" in said


def test_a_sweep_whose_trials_all_fail_stops_with_the_first_error(tmp_path: Path) -> None:
    config = tiny_sweep.write_inputs(tmp_path / "given", {"optim.lr": [0.6, 0.7, 0.8, 0.9, 0.95]})
    with pytest.raises(ValueError, match=r"all of the 3 trials failed, the first with: optim\.lr is too large"):
        tiny_sweep.run(tiny_sweep.request(config, tmp_path / "sweep", sampler="grid"))


def test_a_setting_counts_by_its_mean_over_seeds(tmp_path: Path, config: Path) -> None:
    said = tiny_sweep.run(tiny_sweep.request(config, tmp_path / "sweep", budget=Budget(1, None, None), seeds=3))
    (record,) = tiny_sweep.records(tmp_path / "sweep")
    assert len(record.scores) == 3
    assert record.scores[2] - record.scores[0] == pytest.approx(0.02)
    assert record.score == pytest.approx(record.scores[1])
    assert "+- 0.0100 (3 seeds)" in said
    assert (tmp_path / "sweep" / "trials" / "0000" / "seed-2" / "finished.yaml").exists()


def test_the_best_configuration_has_the_best_setting_and_a_folder_for_its_run(tmp_path: Path, config: Path) -> None:
    said = tiny_sweep.run(tiny_sweep.request(config, tmp_path / "sweep"))
    best = min(tiny_sweep.records(tmp_path / "sweep"), key=lambda record: record.score or 0.0)
    tree = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert tree["optim"]["lr"] == best.values["optim.lr"]
    assert tree["run"]["dir"] == str(tmp_path / "sweep" / "best")
    assert f"llmtrain sft {tmp_path / 'sweep' / 'best.yaml'}" in said
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert f"trial {best.number}" in page
    assert "optim.weight_decay" in page


def test_a_metric_of_which_more_is_better(tmp_path: Path, config: Path) -> None:
    tiny_sweep.run(tiny_sweep.request(config, tmp_path / "sweep", metric="eval_accuracy", maximize=True))
    records = tiny_sweep.records(tmp_path / "sweep")
    best = max(records, key=lambda record: record.score or 0.0)
    tree = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert tree["optim"]["lr"] == best.values["optim.lr"]


def test_only_the_best_trial_keeps_its_checkpoints_if_asked(tmp_path: Path, config: Path) -> None:
    asked = tiny_sweep.request(config, tmp_path / "sweep", keep_best=True)
    for number in range(4):
        (tmp_path / "sweep" / "trials" / f"{number:04d}" / "checkpoints").mkdir(parents=True)
    tiny_sweep.run(asked)
    best = min(tiny_sweep.records(tmp_path / "sweep"), key=lambda record: record.score or 0.0)
    kept = [path.parent.name for path in (tmp_path / "sweep" / "trials").glob("*/checkpoints")]
    assert kept == [f"{best.number:04d}"]


def test_a_budget_of_tokens_starts_no_further_trial(tmp_path: Path, config: Path) -> None:
    tiny_sweep.run(tiny_sweep.request(config, tmp_path / "sweep", budget=Budget(None, None, 700)))
    assert len(tiny_sweep.records(tmp_path / "sweep")) == 3, "300 tokens each: the third starts at 600"


def test_combinations_that_the_schema_refuses_are_counted_and_left_out(tmp_path: Path) -> None:
    space = {"optim.lr": [1e-3, 1e-2], "optim.warmup_steps": [0, 50]}
    config = tiny_sweep.write_inputs(tmp_path / "given", space)
    said = tiny_sweep.run(
        tiny_sweep.request(config, tmp_path / "sweep", sampler="grid", budget=Budget(None, None, None))
    )
    assert "2 of 4 combinations are left out" in said
    assert "optim.warmup_steps=50 leaves nothing of the run's 3 steps" in said
    assert len(tiny_sweep.records(tmp_path / "sweep")) == 2


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path, config: Path) -> None:
    tiny_sweep.run(tiny_sweep.request(config, tmp_path / "sweep", budget=Budget(1, None, None)))
    with pytest.raises(ValueError, match="holds a sweep with another seeds"):
        tiny_sweep.run(tiny_sweep.request(config, tmp_path / "sweep", seeds=2))


def test_a_folder_of_something_else_is_refused(tmp_path: Path, config: Path) -> None:
    with pytest.raises(ValueError, match="is not a sweep: choose another folder with --dir"):
        tiny_sweep.run(tiny_sweep.request(config, tmp_path / "given"))


def test_a_sweep_without_held_out_data_is_refused(tmp_path: Path) -> None:
    config = tiny_sweep.write_inputs(tmp_path / "given", data={"eval_fraction": 0})
    with pytest.raises(ValueError, match=r"give data\.eval or data\.eval_fraction"):
        tiny_sweep.run(tiny_sweep.request(config, tmp_path / "sweep"))


def test_names_that_hold_html_do_not_reach_the_page_as_html(tmp_path: Path) -> None:
    config = tiny_sweep.write_inputs(tmp_path / "given", {"data.train": ["<script>alert(1)</script>", "b"]})
    tiny_sweep.run(tiny_sweep.request(config, tmp_path / "sweep", sampler="grid"))
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_the_page_shows_keys_of_which_no_trial_has_a_value(tmp_path: Path) -> None:
    space = {"optim.lr": [1e-3, 1e-2], "optim.warmup_steps": {"range": [0, 1], "when": {"optim.lr": 1e-2}}}
    config = tiny_sweep.write_inputs(tmp_path / "given", space, optim={"warmup_steps": None})
    said = tiny_sweep.run(tiny_sweep.request(config, tmp_path / "sweep", sampler="grid", budget=Budget(1, None, None)))
    assert "warning" not in said
    assert "optim.warmup_steps" in (tmp_path / "sweep" / "sweep.html").read_text()
