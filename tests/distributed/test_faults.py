"""A rank that fails, is killed or hangs ends the launch at once, and every log says which it was."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import tiny_rl
from fault_table import last_line, record
from launch import attempt, options_of, started
from tiny_run import PRETRAIN, RLHF, Ended, metrics, write_config, write_corpus, write_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

FAULTY = Path(__file__).with_name("faulty.py")
STOPPED = "stopped: rank "
NAMES = {
    "raise_error": "a rank fails",
    "raise_user_error": "a rank meets what you can fix",
    "be_killed": "`kill -9` of a rank, or no memory is left",
    "hang": "a rank hangs",
    "be_stopped": "a rank's process is stopped (SIGSTOP), or its machine answers no more",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tokenizer(folder / "tokenizer")
    write_corpus(folder / "corpus.jsonl", seed=1)
    return folder


@pytest.fixture
def config(inputs: Path, tmp_path: Path) -> Path:
    return write_config(
        tmp_path,
        inputs / "tokenizer",
        [inputs / "corpus.jsonl"],
        train={"steps": 1000},
        eval={"every": None},
        checkpoint={"every": 1},
    )


def faulty_launch(config: Path, fault: str, rank: int, *overrides: str, engine: str = "cpu") -> Ended:
    """A launch of three processes of which one has a fault in its third step."""
    arguments = [fault, str(rank), str(PRETRAIN), str(config), *overrides]
    return attempt(options_of(engine, 3), FAULTY, arguments, output=config.parent / "process")


def outcomes(config: Path) -> dict[str, int]:
    """What each rank would have ended with alone."""
    return {file.name: int(file.read_text()) for file in (config.parent / "outcomes").iterdir()}


def stopped_lines(ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if line.startswith(STOPPED)]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("fault", "status", "says", "tracebacks"),
    [
        ("raise_error", 1, "failed: ZeroDivisionError: a fault on purpose", 1),
        ("raise_user_error", 2, "failed: data.train[0]: a fault on purpose", 0),
        ("be_killed", 1, "is gone: its process was killed", 0),
    ],
)
def test_a_rank_that_ends_is_named_by_the_others(
    config: Path, fault: str, status: int, says: str, tracebacks: int, rank: int
) -> None:
    ended = faulty_launch(config, fault, rank)
    assert ended.code in (status, 9)
    (line,) = stopped_lines(ended)
    assert line.startswith(f"{STOPPED}{rank} (") and says in line
    assert ended.err.count("Traceback (most recent call last)") == tracebacks
    if rank:
        record(fault=NAMES[fault], sees=line, lost="the steps since the last checkpoint")
    assert max(row["step"] for row in metrics(config.parent / "run") if "loss" in row) == 2


@pytest.mark.parametrize(("fault", "says"), [("hang", ":"), ("be_stopped", "which does not answer")])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_hangs_is_named_with_its_stack(config: Path, fault: str, says: str, rank: int) -> None:
    ended = faulty_launch(config, fault, rank, "run.timeout_minutes=0.1")
    assert ended.code in (1, 9)
    (line,) = stopped_lines(ended)
    assert line.startswith(f"{STOPPED}{rank} (") and " hangs: waited " in line and says in line
    assert "Traceback" not in ended.err
    if fault == "hang":
        assert "at faulty.py:" in line and "in hang < faulty.py:" in line
        assert "most recent call first" in ended.err  # every thread of the rank, in its own log
    if rank:
        record(fault=NAMES[fault], sees=line, lost="the steps since the last checkpoint")


def test_a_slow_save_after_a_signal_is_waited_for_by_all_ranks(config: Path) -> None:
    (config.parent / "outcomes").mkdir()
    arguments = ["slow_save", "0", str(PRETRAIN), str(config), "checkpoint.every=null"]
    launch = started(options_of("cpu", 3), FAULTY, arguments, output=config.parent / "process")
    folder = config.parent / "run"
    assert launch.wait_until(lambda: len(metrics(folder)) >= 2)
    launch.send(signal.SIGUSR1)
    assert launch.wait_until(lambda: any(folder.glob("checkpoints/*.partial")))
    launch.send(signal.SIGTERM)  # again, as a scheduler does before it kills
    ended = launch.wait()
    assert ended.code == 0 and ended.err == ""
    assert outcomes(config) == {"0": 75, "1": 75, "2": 75}
    (saved,) = (folder / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert step == metrics(folder)[-1]["step"]
    line = f"interrupted after step {step}, which is saved; start the same command again to continue"
    assert ended.out.splitlines()[-1] == line and ended.out.count("interrupted after") == 1
    record(fault="SIGUSR1, then SIGTERM, to all ranks; the save is slow", sees=line, lost="nothing")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_before_training_ends_all_alike(config: Path, rank: int) -> None:
    (config.parent / "outcomes").mkdir()
    ended = faulty_launch(config, "get_signal:before_training", rank)
    assert ended.code == 0 and "Traceback" not in ended.err
    assert outcomes(config) == {"0": 75, "1": 75, "2": 75}
    lines = [line for line in (ended.out + ended.err).splitlines() if line.startswith("interrupted")]
    assert len(lines) == 1 and lines[0].startswith("interrupted before training: nothing is lost")
    if rank:
        record(fault="SIGTERM to one rank before training", sees=lines[0], lost="nothing")


def test_a_signal_to_one_rank_in_training_saves_and_ends_all_alike(config: Path) -> None:
    (config.parent / "outcomes").mkdir()
    ended = faulty_launch(config, "get_signal", 1, "checkpoint.every=null")
    assert ended.code == 0 and ended.err == ""
    assert outcomes(config) == {"0": 75, "1": 75, "2": 75}
    assert [path.name for path in (config.parent / "run" / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_slow_rank_is_named_and_ends_nothing(config: Path) -> None:
    ended = faulty_launch(config, "slow", 2, "train.steps=25", "checkpoint.every=null")
    assert ended.code == 0 and ended.err == ""
    (line,) = [line for line in ended.out.splitlines() if line.startswith("slow: ")]
    assert line.startswith("slow: rank 2 (") and "computes for 0.5" in line
    lines = (config.parent / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    (event,) = [event for event in map(json.loads, lines) if event["event"] == "slow"]
    assert event["rank"] == 2 and event["seconds"] > 3 * event["others"]
    record(fault="one rank takes several times as long", sees=line, lost="nothing: the run goes on")


def test_a_signal_to_one_rank_in_the_middle_of_a_rollout_ends_all_alike(tmp_path: Path) -> None:
    config = tiny_rl.write_config(tmp_path, tiny_rl.write_task(tmp_path / "task"))
    (tmp_path / "outcomes").mkdir()
    arguments = ["get_signal:in_a_rollout", "2", str(RLHF), str(config), "run.timeout_minutes=1"]
    ended = attempt(options_of("cpu", 3), FAULTY, arguments, output=tmp_path / "process")
    assert ended.code == 0 and ended.err == ""
    assert outcomes(config) == {"0": 75, "1": 75, "2": 75}
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000000"]
    record(fault="SIGTERM to one rank in a rollout", sees=last_line(ended.out), lost="the rollout")
