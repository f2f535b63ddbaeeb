"""Signals to a launcher reach each of its processes, once, and those that do not end are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmtrain.launch.signals import PASSED_ON, POLL_SECONDS, PassedOn, passing_signals_on

COUNTS = """
import signal, sys, time
from pathlib import Path
def note(number, frame):
    with open(Path(sys.argv[1], "got"), "a") as file:
        print(number, file=file)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, note)
Path(sys.argv[1], "ready").touch()
while True:
    time.sleep(0.01)
"""
LIMIT_SECONDS = 30


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A launch leaves its handlers to the end of its process."""
    before = {number: signal.getsignal(number) for number in PASSED_ON}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process as torchrun starts one, which notes its signals in a folder."""
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", COUNTS, str(folder)], start_new_session=True) as started:
        try:
            wait_until((folder / "ready").exists)
            yield started
        finally:
            started.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def got(folder: Path) -> list[int]:
    path = folder / "got"
    return [int(line) for line in path.read_text(encoding="ascii").splitlines()] if path.exists() else []


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_each_process_gets_each_signal_once_also_one_that_starts_late(tmp_path: Path) -> None:
    passed_on = PassedOn(LIMIT_SECONDS, lambda: True, lambda: None)
    with passing_signals_on(passed_on), process(tmp_path / "early"):
        send(signal.SIGUSR1)
        wait_until(lambda: got(tmp_path / "early") == [signal.SIGUSR1])
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            send(number)
        wait_until(lambda: passed_on.received == [signal.SIGUSR1, signal.SIGTERM])
        wait_until(lambda: got(tmp_path / "early") == [signal.SIGUSR1, signal.SIGTERM])
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as late:
            assert late.wait(LIMIT_SECONDS) == -signal.SIGUSR1  # it has no handler yet
        assert got(tmp_path / "early") == [signal.SIGUSR1, signal.SIGTERM]


def test_each_ctrl_c_is_passed_on_and_a_closed_terminal_is_a_wish_to_end(tmp_path: Path) -> None:
    passed_on = PassedOn(LIMIT_SECONDS, lambda: True, lambda: None)
    with passing_signals_on(passed_on), process(tmp_path / "process"):
        for sent in (signal.SIGINT, signal.SIGINT, signal.SIGHUP):
            before = len(got(tmp_path / "process"))
            send(sent)
            wait_until(lambda before=before: len(got(tmp_path / "process")) > before)  # type: ignore[misc]
    assert got(tmp_path / "process") == [signal.SIGINT, signal.SIGINT, signal.SIGTERM]


def test_a_process_that_does_not_end_in_time_is_killed_which_is_no_end_without_loss(tmp_path: Path) -> None:
    left = threading.Event()
    passed_on = PassedOn(0.2, lambda: True, left.set)
    with passing_signals_on(passed_on), process(tmp_path / "process") as started:
        send(signal.SIGTERM)
        assert started.wait(LIMIT_SECONDS) == -signal.SIGKILL
        assert not left.wait(5 * POLL_SECONDS)  # torchrun is about to report the failure
    assert passed_on.killed and got(tmp_path / "process") == [signal.SIGTERM]


def test_a_launcher_without_processes_leaves_at_once() -> None:
    left = threading.Event()
    with passing_signals_on(PassedOn(LIMIT_SECONDS, lambda: False, left.set)):
        send(signal.SIGTERM)
        assert left.wait(LIMIT_SECONDS)


def test_a_signal_after_a_launch_does_not_change_its_exit_code() -> None:
    with passing_signals_on(PassedOn(LIMIT_SECONDS, lambda: True, lambda: None)):
        pass
    for number in PASSED_ON:
        send(number)
