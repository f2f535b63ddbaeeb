"""SIGTERM and SIGUSR1: the run saves and exits with 0 within a step, and goes on from there."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tiny_run import Started, metrics, run, start, write_config, write_corpus, write_tokenizer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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
    assert ended.code == 0 and ended.err == ""
    (saved,) = checkpoints(folder)
    assert saved == steps_logged(folder) <= asked_at + 1
    assert f"{number.name}: stopping after {saved} steps" in ended.out
    assert not (folder / "model").exists()


def evaluating(config: Path) -> Started:
    """A run that is inside its first evaluation, which takes seconds."""
    process = start(config)
    assert process.wait_until(lambda: process.catches(signal.SIGTERM))  # the last thing before the loop
    process.run_for(0.3)
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
    assert ended.code == 0 and ended.err == ""
    assert f"{number.name}: stopping after 0 steps" in ended.out
    assert metrics(folder) == [] and checkpoints(folder) == [0]
    ended = run(config, "train.microbatch_tokens=256")
    assert ended.code == 0 and "resumed at step 0" in ended.out
    assert [row["step"] for row in metrics(folder) if "eval_loss" in row] == [0, 10]
