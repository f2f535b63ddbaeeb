"""Ctrl-C: the first one is announced at once, the second one ends the process wherever it is."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmtrain.system.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED
from llmtrain.system.interrupt import watched_signals

LIMIT_SECONDS = 60
BLOCKED = """
import hashlib, signal
signal.signal(signal.SIGINT, lambda *_: None)  # the default one could end it between "ready" and the call into C
from llmtrain.system.interrupt import note, watched_signals
with watched_signals(lambda _: note("first")):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C, without Python's lock
"""
BLOCKED_COMMAND = """
import hashlib
from llmtrain.recipes.command import resumable_command
with resumable_command():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
COMMAND = """
import time
from llmtrain.recipes.command import command, resumable_command
with {command}():
    print("ready", flush=True)
    time.sleep(60)
"""
SAVES = """
import time
from rich.console import Console
from llmtrain.system.stop_signal import StopSignal
with StopSignal() as stop:
    stop.note()
    print("ready", flush=True)
    while stop.requested is None:
        time.sleep(0.01)
    Console().print("stopping")
    print("saved", flush=True)
"""


@contextmanager
def started(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs code in a group of its own, once it is ready."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, start_new_session=True, **pipes) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def interrupt_until(process: subprocess.Popen[str]) -> int:
    """Press Ctrl-C until the process ends; its exit code."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        os.killpg(process.pid, signal.SIGINT)
        try:
            return process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    raise TimeoutError("it goes on")


def test_a_second_ctrl_c_ends_a_long_call_into_c() -> None:
    with started(BLOCKED) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        assert select.select([process.stderr], [], [], LIMIT_SECONDS)[0]
        assert process.stderr.readline() == "first\n"  # at once: Python's handler waits for the call
        assert process.poll() is None
        assert interrupt_until(process) == EXIT_INTERRUPTED
        assert process.stderr.read() == ""


def test_a_command_that_ctrl_c_ends_says_one_word() -> None:
    with started(COMMAND.format(command="command")) as process:
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=LIMIT_SECONDS)
        assert process.returncode == EXIT_INTERRUPTED
        assert told == "\ninterrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_command_that_can_go_on_is_not_finished_after_a_signal(number: signal.Signals) -> None:
    with started(COMMAND.format(command="resumable_command")) as process:
        process.send_signal(number)
        told, errors = process.communicate(timeout=LIMIT_SECONDS)
        assert process.returncode == EXIT_SAVED
        assert told.startswith("interrupted before training: nothing is lost") and errors == ""


@pytest.mark.parametrize(("number", "alone"), [(signal.SIGTERM, EXIT_SAVED), (signal.SIGINT, EXIT_INTERRUPTED)])
def test_in_a_launch_it_leaves_that_where_the_launcher_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, alone: int
) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LLMTRAIN_OUTCOMES": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with started(COMMAND.format(command="resumable_command")) as process:
        process.send_signal(number)
        assert process.wait(timeout=LIMIT_SECONDS) == 0  # torchrun calls everything else a failure
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    assert int((tmp_path / "3").read_text(encoding="ascii")) == alone


def test_a_signal_ends_a_command_whose_main_thread_waits_in_c() -> None:
    with started(BLOCKED_COMMAND) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=LIMIT_SECONDS) == EXIT_SAVED


def test_a_command_that_can_go_on_says_how() -> None:
    with started(COMMAND.format(command="resumable_command")) as process:
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=LIMIT_SECONDS)
        assert process.returncode == EXIT_INTERRUPTED
        assert told.startswith("\ninterrupted before training: nothing is lost")
        assert told.endswith("run it again to continue: python -c\n")


def test_a_forked_child_does_not_report_its_signals_to_its_parent() -> None:
    with watched_signals():
        child = os.fork()
        if child == 0:
            os._exit(0 if signal.set_wakeup_fd(-1) == -1 else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("_", range(2))
def test_the_watch_leaves_nothing(_: int) -> None:
    handlers = signal.getsignal(signal.SIGINT)
    with watched_signals():
        pass
    assert signal.getsignal(signal.SIGINT) == handlers
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("make", [os.openpty, os.pipe], ids=["a terminal", "a pipe"])
def test_a_run_saves_though_nobody_reads_what_it_prints_any_more(make: Callable[[], tuple[int, int]]) -> None:
    reading, writing = make()
    with subprocess.Popen([sys.executable, "-c", SAVES], stdout=writing, stderr=writing, start_new_session=True) as run:
        os.close(writing)
        assert os.read(reading, 64).startswith(b"ready")
        os.close(reading)
        run.send_signal(signal.SIGTERM)
        assert run.wait(LIMIT_SECONDS) == 0
