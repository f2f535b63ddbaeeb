"""Untrusted Python -> how many of its tests pass. Each program runs in its own restricted process, with a time limit.

The process has an empty temporary folder, no environment, limits on CPU time, memory and file size, and is killed with
its whole process group. Inside it, `sandbox_child` sets up walls: no file is written outside the folder, no process is
started, no socket opened, no signal sent. On Linux on x86-64 and ARM the kernel enforces this (seccomp; Landlock from
5.13 on); elsewhere only hooks of the interpreter do, which deliberate code can bypass. Files can be read. The verdict
can be trusted unless the program searches its interpreter's memory for the token that signs it. A test passes if its
own Python says so: `assert f(x) == 3` passes for an object whose `__eq__` is always true.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmtrain.system.device import share_of_cores

CHILD = Path(__file__).with_name("sandbox_child.py")
VERDICT_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """What a program may use. Raises ValueError for a limit that is too low to run anything."""

    seconds: int = 5  # of CPU time; twice as much and two more by the clock
    memory_mb: int = 512  # of address space, the interpreter's own 30 included
    file_mb: int = 1  # of each file

    def __post_init__(self) -> None:
        for name, value, least in (("seconds", self.seconds, 1), ("memory_mb", self.memory_mb, 64)):
            if value < least:
                raise ValueError(f"{name} {value}: must be at least {least}")

    @property
    def clock_seconds(self) -> float:
        """Time by the clock after which a program is killed."""
        return 2.0 * self.seconds + 2


@dataclass(frozen=True)
class Verdict:
    """How a program ended: the tests that passed, and the walls that were up; () if it did not get to the end."""

    num_passed: int
    walls: tuple[str, ...]


FAILED = Verdict(0, ())


def run_all(programs: Sequence[tuple[str, Sequence[str]]], limits: Limits) -> list[Verdict]:
    """The verdicts on programs with their tests, in order.

    As many run at once as this process has processors: more would wait for each other, while the clock of each runs.
    """
    with ThreadPoolExecutor(max_workers=share_of_cores(os.environ)) as pool:
        return list(pool.map(partial(_run, limits=limits), programs))


def _run(program: tuple[str, Sequence[str]], limits: Limits) -> Verdict:
    code, tests = program
    token = secrets.token_hex(16)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    job = {
        "code": code,
        "tests": list(tests),
        "token": token,
        "verdict_fd": writing,
        "seconds": limits.seconds,
        "memory_bytes": limits.memory_mb * 2**20,
        "file_bytes": limits.file_mb * 2**20,
    }
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            in_time = _end(json.dumps(job).encode(), folder, writing, limits.clock_seconds)
        return _verdict(reading, token) if in_time else FAILED
    finally:
        os.close(reading)
        os.close(writing)


def _end(job: bytes, folder: str, verdict_fd: int, clock_seconds: float) -> bool:
    """Run a job in a folder until it has ended, with all that it started; whether it did so in time."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"HOME": folder, "LANG": "C.UTF-8"},
        pass_fds=(verdict_fd,),
        start_new_session=True,
    ) as process:
        try:
            process.communicate(job, timeout=clock_seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):  # nothing is left
                os.killpg(process.pid, signal.SIGKILL)
    return True


def _verdict(reading: int, token: str) -> Verdict:
    with suppress(BlockingIOError, ValueError, TypeError, KeyError):  # it ended early, or wrote something of its own
        verdict = json.loads(os.read(reading, VERDICT_BYTES))
        if verdict["token"] == token:
            return Verdict(int(verdict["num_passed"]), tuple(verdict["walls"]))
    return FAILED
