"""Real launches by `llmtrain launch` on a CPU: engines, nodes, signals, exit codes, and what is printed last."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from launch import LIMIT_SECONDS
from launched import Launcher, launched, of_node, started
from tiny_run import metrics, write_config, write_corpus, write_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOB = 10_000 + os.getpid()  # its port is not that of another test process
FOREVER = {"train": {"steps": 100_000}, "eval": {"every": None}, "checkpoint": {"every": None}}
FAILS_ON_RANK_1 = """
import os
from llmtrain.train import runtime

def planted(self, *arguments):
    if self.rank == 1:
        raise RuntimeError("planted")
    return prepare(self, *arguments)

if "RANK" in os.environ:
    prepare, runtime.Runtime.prepare = runtime.Runtime.prepare, planted
"""
SLOW_SAVE = """
import os, time
from llmtrain.train import checkpoint

def planted(*arguments, **keywords):
    time.sleep(3600)

if "RANK" in os.environ:
    checkpoint.Checkpoints.save = planted
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_tokenizer(tmp_path / "tokenizer"), write_corpus(tmp_path / "corpus.jsonl", seed=1)


@pytest.fixture
def endless(tmp_path: Path, files: tuple[Path, Path]) -> Path:
    return write_config(tmp_path, files[0], [files[1]], **FOREVER)


def planted(folder: Path, code: str) -> dict[str, str]:
    """The environment of processes that run some code when they start."""
    (folder / "plant").mkdir()
    (folder / "plant" / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(folder / "plant"), str(Path(__file__).resolve().parents[2])])}


def is_training(config: Path) -> bool:
    return any("loss" in row for row in metrics(config.parent / "run"))


def saved_step(config: Path) -> int:
    """The step of the only checkpoint, which must be the last that was trained."""
    (saved,) = (config.parent / "run" / "checkpoints").glob("step-????????")
    step = max(row["step"] for row in metrics(config.parent / "run"))
    assert saved.name == f"step-{step:08d}"
    return int(step)


@pytest.mark.parametrize("config_file", [pytest.param(None, marks=pytest.mark.soak), "cpu_zero3"])
def test_two_processes_and_two_nodes_train_what_one_process_does(
    tmp_path: Path, files: tuple[Path, Path], config_file: str | None
) -> None:
    engine = [] if config_file is None else ["--config_file", config_file]
    folders = [tmp_path / name for name in ("alone", "two", "nodes")]
    configs = [write_config(folder, files[0], [files[1]], train={"steps": 3}) for folder in folders]
    alone = launched(["pretrain", str(configs[0])])
    two = launched([*engine, "--num_processes", "2", "pretrain", str(configs[1])])
    with ExitStack() as stack:
        arguments = [*engine, "--num_processes", "1", "pretrain", str(configs[2])]
        nodes = [stack.enter_context(started(arguments, **of_node(rank, JOB))) for rank in range(2)]
        ended = [node.wait() for node in nodes]
    for each in (alone, two, *ended):
        assert each.code == 0 and not each.err, each.err
    losses = [[row["loss"] for row in metrics(folder / "run") if "loss" in row] for folder in folders]
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.soak),
        (signal.SIGINT, 130),
        (signal.SIGHUP, 75),
    ],
)
def test_a_signal_to_the_launcher_saves_and_ends_with_the_code_of_one_process(
    endless: Path, number: signal.Signals, code: int
) -> None:
    with started(["--num_processes", "2", "pretrain", str(endless)]) as launcher:
        launcher.wait_until(lambda: is_training(endless))
        launcher.send(number)
        ended = launcher.wait()
    assert ended.code == code
    assert f"interrupted after step {saved_step(endless)}, which is saved" in ended.out + ended.err
    assert "Traceback" not in ended.err and "SignalException" not in ended.err


def test_signals_that_come_to_all_processes_and_twice_break_nothing(endless: Path) -> None:
    arguments = ["--num_processes", "1", "pretrain", str(endless)]
    with ExitStack() as stack:
        nodes = [stack.enter_context(started(arguments, **of_node(rank, JOB + 1))) for rank in range(2)]
        nodes[0].wait_until(lambda: is_training(endless))
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            for node in nodes:
                send_if_running(node, number)
        ended = [node.wait() for node in nodes]
    assert [each.code for each in ended] == [75, 75]
    assert saved_step(endless) > 0
    assert not any("Traceback" in each.err for each in ended)


def send_if_running(node: Launcher, number: signal.Signals) -> None:
    if node.process.poll() is None:
        node.send_to_all(number)


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, endless: Path) -> None:
    arguments = ["--num_processes", "2", "pretrain", str(endless)]
    with started(arguments, **planted(tmp_path, SLOW_SAVE)) as launcher:
        launcher.wait_until(lambda: is_training(endless))
        workers = launcher.workers()
        launcher.send(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.process.wait(2)
        launcher.send(signal.SIGINT)
        ended = launcher.wait()
    assert ended.code == 130
    assert not any(worker.is_running() for worker in workers)
    assert "Traceback" not in ended.err


def test_a_save_that_takes_too_long_is_ended(tmp_path: Path, endless: Path) -> None:
    arguments = ["--num_processes", "2", "--save_seconds", "2", "pretrain", str(endless)]
    with started(arguments, **planted(tmp_path, SLOW_SAVE)) as launcher:
        launcher.wait_until(lambda: is_training(endless))
        workers = launcher.workers()
        launcher.send(signal.SIGTERM)
        ended = launcher.wait()
    assert ended.code == 1
    assert ended.err.strip().splitlines()[-1].startswith("error: the processes did not end within 2 s of SIGTERM")
    assert not any(worker.is_running() for worker in workers)


def test_a_signal_while_another_node_is_waited_for_ends_at_once(endless: Path) -> None:
    arguments = ["--num_processes", "1", "pretrain", str(endless)]
    with started(arguments, **of_node(1, JOB + 2)) as launcher:
        launcher.wait_until(lambda: catches(launcher, signal.SIGUSR1, signal.SIGHUP))
        launcher.send(signal.SIGUSR1)
        ended = launcher.wait()
    assert ended.code == 75
    assert ended.err == "ended by SIGUSR1 before the processes were started\n"


def catches(launcher: Launcher, *numbers: signal.Signals) -> bool:
    """Whether the launcher has handlers for signals."""
    return has_handlers(launcher.process.pid, numbers)


def has_handlers(process: int, numbers: Sequence[signal.Signals]) -> bool:
    """Whether a process has handlers for signals, as Linux says."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return all(caught >> (number - 1) & 1 for number in numbers)


START = {
    "while the launcher imports": lambda launcher: catches(launcher, signal.SIGUSR1),
    "while the first process starts": lambda launcher: len(launcher.workers()) > 0,
    "while the processes import": lambda launcher: (
        len(launcher.workers()) == 2 and all(has_handlers(w.pid, [signal.SIGUSR1]) for w in launcher.workers())
    ),
}


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        *((moment, signal.SIGUSR1, 75) for moment in START),
        # Not while Python itself starts in a process, which prints where it was.
        *((moment, signal.SIGINT, 130) for moment in START if moment != "while the first process starts"),
    ],
)
def test_a_signal_in_the_start_ends_with_nothing_to_save(
    endless: Path, moment: str, number: signal.Signals, code: int
) -> None:
    with started(["--num_processes", "2", "pretrain", str(endless)]) as launcher:
        launcher.wait_until(lambda: START[moment](launcher))
        workers = launcher.workers()
        launcher.send(number)
        ended = launcher.wait()
    assert ended.code == code and "Traceback" not in ended.err
    said = (ended.out + ended.err).strip()
    assert "before" in said
    assert not any(worker.is_running() for worker in workers)
    assert not is_training(endless)


def test_what_the_user_can_fix_is_one_line_of_the_whole_launch(endless: Path) -> None:
    ended = launched(["--num_processes", "2", "pretrain", str(endless), "data.train=nothing.jsonl"])
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.removeprefix("[rank 1] ") == "error: data.train[0]=nothing.jsonl: no such file or folder"


def test_the_error_of_the_rank_that_failed_first_is_last(tmp_path: Path, endless: Path) -> None:
    arguments = ["--num_processes", "2", "--log_dir", str(tmp_path / "logs"), "pretrain", str(endless)]
    ended = launched(arguments, **planted(tmp_path, FAILS_ON_RANK_1))
    assert ended.code == 1
    last = ended.err.strip().splitlines()[-1]
    (log,) = (tmp_path / "logs").glob("*/node-0/*/attempt_0/1/stderr.log")
    assert last.startswith("error: rank 1 on ") and last.endswith(f" failed first: RuntimeError: planted ({log})")
    assert "torchrun" not in ended.err and "ChildFailedError" not in ended.err
    assert log.read_text(encoding="utf-8").strip().endswith("RuntimeError: planted")


def test_a_process_that_is_killed_ends_the_others_and_is_named(endless: Path) -> None:
    with started(["--num_processes", "2", "pretrain", str(endless)]) as launcher:
        launcher.wait_until(lambda: is_training(endless))
        victim = max(launcher.workers(), key=lambda worker: int(worker.environ()["RANK"]))
        victim.kill()
        ended = launcher.wait()
    assert ended.code == 1
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("error: rank 1 on ") and last.endswith(
        " was ended by SIGKILL: the node may be out of memory"
    )


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["run.dir=run"], "run.dir=run of rank 1 on "),  # another folder on each node, as their disks differ
        (["optim.lr=0.1"], "was started with optim.lr=0.1, rank 0 on "),
    ],
)
def test_nodes_that_cannot_train_together_are_refused_before_training(
    tmp_path: Path, endless: Path, overrides: list[str], reason: str
) -> None:
    is_folder = overrides[0].startswith("run.dir")
    with ExitStack() as stack:
        nodes = []
        for rank in range(2):
            disk = tmp_path / f"disk-{rank}"
            disk.mkdir()
            words = overrides if is_folder or rank == 1 else []
            arguments = ["--num_processes", "1", "pretrain", str(endless), *words]
            nodes.append(stack.enter_context(started(arguments, disk, **of_node(rank, JOB + 3 + is_folder))))
        ended = [node.wait() for node in nodes]
    assert [each.code for each in ended] == [2, 2]
    for each in ended:
        (line,) = each.err.splitlines()
        assert reason in line
    assert not (endless.parent / "run").exists() and not list(tmp_path.glob("disk-*/*"))


def test_a_node_that_does_not_come_is_one_line(endless: Path) -> None:
    words = ["--num_processes", "1", "--rdzv_conf", "timeout=2", "pretrain", str(endless)]
    ended = launched(words, **of_node(0, JOB + 5))
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("error: the nodes did not meet at localhost:")


def test_a_port_that_is_taken_is_one_line(endless: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["--num_processes", "1", "--main_process_port", str(port), "pretrain", str(endless)]
        ended = launched(words, **of_node(0, JOB + 6))
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: the nodes did not meet at localhost:{port}: ") and "--main_process_port" in line


def test_a_launcher_that_is_killed_leaves_no_process(endless: Path) -> None:
    with started(["--num_processes", "2", "pretrain", str(endless)]) as launcher:
        launcher.wait_until(lambda: is_training(endless))
        workers = launcher.workers()
        launcher.send(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, LIMIT_SECONDS)
    assert not alive
    assert saved_step(endless) > 0
