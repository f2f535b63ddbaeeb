"""SIGTERM, SIGUSR1 and Ctrl-C: the run saves and exits within a step, says how to go on, and goes on from there.

The exit code is 75, and 130 after Ctrl-C: a script or a scheduler knows that the run is not finished.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from fault_table import last_line, record
from tiny_run import PRETRAIN, Ended, Started, metrics, run, start, write_config, write_corpus, write_tokenizer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ANNOUNCED = "Ctrl-C: ending this step, saving, then stopping; once more ends at once, and the last checkpoint is kept"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, a corpus, and held-out text that takes long to evaluate."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tokenizer(folder / "tokenizer")
    write_corpus(folder / "corpus.jsonl", seed=1)
    write_corpus(folder / "held_out.jsonl", seed=2, num_documents=800)
    return folder


def steps_logged(folder: Path) -> int:
    return max((row["step"] for row in metrics(folder) if "loss" in row), default=0)


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-????????"))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_training_saves_and_exits_within_a_step(
    inputs: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config = write_config(
        tmp_path,
        inputs / "tokenizer",
        [inputs / "corpus.jsonl"],
        train={"steps": 100_000},
        eval={"every": None},
        checkpoint={"every": None},
    )
    folder, process = tmp_path / "run", start(config)
    assert process.wait_until(lambda: steps_logged(folder) >= 3)
    process.send(number)
    asked_at = steps_logged(folder)
    ended = process.wait()
    (saved,) = checkpoints(folder)
    assert saved == steps_logged(folder) <= asked_at + 1
    assert f"{number.name}: stopping after {saved} steps" in ended.out
    assert not (folder / "model").exists()
    assert_ended_as_asked(ended, number, config, saved)


def assert_ended_as_asked(ended: Ended, number: signal.Signals, config: Path, saved: int) -> None:
    again = f"interrupted after step {saved}, which is saved; run it again to continue: python {PRETRAIN} {config}\n"
    if number == signal.SIGINT:
        assert ended.code == 130
        assert ended.err.splitlines() == ["", ANNOUNCED, "", again.rstrip()]
    else:
        assert ended.code == 75 and ended.err == ""
        assert ended.out.endswith(again)
        record(fault=f"{number.name} in training", sees=last_line(ended.out), lost="nothing")


def test_a_second_ctrl_c_ends_a_run_at_once_and_it_goes_on_from_its_last_checkpoint(
    inputs: Path, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path,
        inputs / "tokenizer",
        [inputs / "corpus.jsonl"],
        train={"steps": 12},
        eval={"every": 4},
        data={"eval": str(inputs / "held_out.jsonl"), "eval_fraction": 0},
        checkpoint={"every": 1},
    )
    folder, process = tmp_path / "run", start(config)
    assert process.wait_until(lambda: bool(checkpoints(folder)))
    process.send(signal.SIGINT)
    ended = pressed_again(process)
    assert ended.code == 130
    assert ended.err.splitlines()[:2] == ["", ANNOUNCED] and "Traceback" not in ended.err
    assert run(config).code == 0
    assert checkpoints(folder)[-1] == 12


def pressed_again(process: Started) -> Ended:
    """Press Ctrl-C until a run has ended."""
    while process.is_running:
        process.send(signal.SIGINT)
        process.run_for(0.1)
    return process.wait()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_training_is_one_line(inputs: Path, tmp_path: Path, number: signal.Signals) -> None:
    config = write_config(tmp_path, inputs / "tokenizer", [inputs / "corpus.jsonl"])
    process = start(config)
    assert process.wait_until(lambda: (tmp_path / "run").is_dir())  # held; model and data are still to come
    process.send(number)
    ended = process.wait()
    line = (
        "interrupted before training: nothing is lost, and what has been tokenized is kept; "
        f"run it again to continue: python {PRETRAIN} {config}\n"
    )
    if number == signal.SIGINT:
        assert (ended.code, ended.err) == (130, f"\n{line}")
    else:
        assert ended.code == 75 and ended.err == "" and ended.out.endswith(line)
        record(fault=f"{number.name} before training", sees=last_line(ended.out), lost="nothing")
    assert run(config).code == 0


def test_a_finished_run_that_is_started_again_says_so_and_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, inputs / "tokenizer", [inputs / "corpus.jsonl"])
    assert run(config).code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    ended = run(config)
    assert ended.code == 0 and ended.err == ""
    assert last_line(ended.out).startswith(f"run.dir={tmp_path / 'run'}: this run is finished: nothing to do")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    record(fault="the job is started again after its end", sees=last_line(ended.out), lost="nothing")
    ended = run(config, "train.steps=12")
    assert ended.code == 0 and checkpoints(tmp_path / "run")[-1] == 12


def evaluating(config: Path) -> Started:
    """A run that is inside its first evaluation, which takes seconds."""
    process = start(config)
    assert process.wait_until(lambda: "evaluating before the first step" in process.out)
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_evaluating_is_not_left_waiting(inputs: Path, tmp_path: Path, number: signal.Signals) -> None:
    config = write_config(
        tmp_path,
        inputs / "tokenizer",
        [inputs / "corpus.jsonl"],
        data={"eval": str(inputs / "held_out.jsonl"), "eval_fraction": 0},
        train={"microbatch_tokens": 32},  # many small batches: slow
        eval={"every": None},
    )
    folder, process = tmp_path / "run", evaluating(config)
    process.send(number)
    ended = process.wait()
    assert_ended_as_asked(ended, number, config, 0)
    assert f"{number.name}: stopping after 0 steps" in ended.out
    assert metrics(folder) == [] and checkpoints(folder) == [0]
    ended = run(config, "train.microbatch_tokens=256")
    assert ended.code == 0 and "resumed at step 0" in ended.out
    assert [row["step"] for row in metrics(folder) if "eval_loss" in row] == [0, 10]
