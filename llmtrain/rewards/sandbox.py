"""Untrusted Python and the tests of its row -> which tests pass. Nothing that a program does stops the run.

Each program has two processes, each shut in by itself (`jail`, `inside/walls.py`) and killed with all that it started:

    the solution   the response's code; it gets the arguments of calls, and never what is expected
    the tester     the row's tests; it gets results as plain data, compares them, and reports to this process

So a verdict depends only on what the code returns: there is no test to overwrite, no counter to find, no `__eq__` that
is always true. What an assert cannot keep from the code is in docs/sandbox.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import IO, Any, Literal, get_args

from llmtrain.rewards.asserts import Asserts
from llmtrain.rewards.inside.tester import FAILED, GONE, NOT_RUN, PASSED
from llmtrain.rewards.jail import Jail, find_jail
from llmtrain.rewards.remove import remove_folder
from llmtrain.system.cores import share_of_cores

LETTERS = {PASSED, FAILED, GONE, NOT_RUN}
INFO_BYTES = 4096
COLLECT_SECONDS = 10.0  # for bubblewrap to notice that its child is dead
END_SECONDS = 1.0  # for a process that has closed its pipes to end by itself
KILLED_BY = {signal.SIGKILL, signal.SIGXCPU}  # at its limit of processor time

Outcome = Literal["passed", "wrong", "error", "timeout", "crash"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""All tests passed; some failed; the code raised an error or is no Python; out of time; the process ended early."""


@dataclass(frozen=True)
class Limits:
    """What a program may use. Raises ValueError for a limit that is too low to run anything."""

    seconds: int = 5  # of CPU time; twice as much and two more by the clock
    memory_mb: int = 512  # of address space, the interpreter's own 30 included
    file_mb: int = 1  # of each file
    folder_mb: int = 64  # of all files together, in a jail

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
    """How a program ended: the tests that passed, why others did not, and the walls that were up."""

    num_passed: int
    outcome: Outcome
    walls: tuple[str, ...] = ()


def run_all(
    programs: Sequence[tuple[str, Asserts]], limits: Limits, jail: Jail | None = None, *, hooks: bool = True
) -> list[Verdict]:
    """The verdicts on programs with their tests, in order; `jail`: by default the one that is found.

    As many run at once as this process has processors: more would wait for each other, while the clock of each runs.
    Without `hooks`, tests of the sandbox see what holds against native code.
    """
    held = jail or find_jail("auto")
    with ThreadPoolExecutor(max_workers=share_of_cores(os.environ)) as pool:
        return list(pool.map(partial(_run, limits=limits, jail=held, hooks=hooks), programs))


def _run(program: tuple[str, Asserts], limits: Limits, jail: Jail, hooks: bool) -> Verdict:
    code, asserts = program
    common = {
        "limits": {
            "seconds": limits.seconds,
            "memory_bytes": limits.memory_mb * 2**20,
            "file_bytes": limits.file_mb * 2**20,
        },
        "readable": jail.readable,
        "hooks": hooks,
    }
    with ExitStack() as held:
        (to_solution, from_tester), (to_tester, from_solution), (verdict, from_verdict) = (
            held.enter_context(_pipe()) for _ in range(3)
        )
        solution_job = {
            **common,
            "reading": to_solution.fileno(),
            "writing": from_solution.fileno(),
            "prelude": asserts.prelude,
            "code": code,
        }
        tester_job = {
            **common,
            "reading": to_tester.fileno(),
            "writing": from_tester.fileno(),
            "verdict_fd": from_verdict.fileno(),
            "setup": asserts.setup,
            "tests": list(asserts.tests),
            "under_test": list(asserts.under_test),
        }
        ends_of_solution, ends_of_tester = (to_solution, from_solution), (to_tester, from_tester, from_verdict)
        try:
            solution = held.enter_context(_process(solution_job, jail, limits, ends_of_solution))
            tester = held.enter_context(_process(tester_job, jail, limits, ends_of_tester))
        except OSError:  # the machine is out of processes, memory or disk: a crash, not a wrong answer
            return Verdict(0, "crash")
        for end in (*ends_of_solution, *ends_of_tester):  # so that the end of a pipe says that a process ended
            end.close()
        in_time = tester.ends(limits.clock_seconds)
        died_at = solution.process.returncode if in_time and solution.ends(END_SECONDS) else None
        tester.kill()
        return _verdict(verdict.read().decode("ascii", "replace"), len(asserts.tests), in_time, died_at)


def _verdict(written: str, num_tests: int, in_time: bool, died_at: int | None) -> Verdict:
    """From what the tester wrote, and the exit code of a solution that ended by itself."""
    first, _, letters = written.partition("\n")
    walls, num_passed = tuple(first.split()), letters.count(PASSED)
    if not set(letters) <= LETTERS:
        return Verdict(0, "crash", walls)
    if letters == NOT_RUN:
        return Verdict(0, "error", walls)
    if len(letters) == num_tests and GONE not in letters:
        return Verdict(num_passed, "passed" if num_passed == num_tests else "wrong", walls)
    out_of_time = not in_time or (died_at is not None and (-died_at in KILLED_BY or died_at - 128 in KILLED_BY))
    return Verdict(num_passed, "timeout" if out_of_time else "crash", walls)


@contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """The ends of a pipe, to read from and to write to."""
    reading, writing = (FileIO(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
    with reading, writing:
        yield reading, writing


@dataclass(frozen=True)
class Child:
    """A process in the sandbox: bubblewrap's, with the program's own as its child, or the program's own."""

    process: subprocess.Popen[bytes]
    info: FileIO | None  # bubblewrap's report, with the number of its child

    def ends(self, seconds: float) -> bool:
        """Whether it ends by itself in time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it with all that it started. bubblewrap is left to collect its child, or nobody might."""
        if self.info is not None and self.process.poll() is None:
            with suppress(OSError, ValueError, LookupError, TypeError):  # it has not come so far
                os.kill(json.loads(self.info.read(INFO_BYTES) or b"")["child-pid"], signal.SIGKILL)
                self.ends(COLLECT_SECONDS)
        with suppress(ProcessLookupError):  # nothing is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def _process(job: Mapping[str, Any], jail: Jail, limits: Limits, ends: Sequence[FileIO]) -> Iterator[Child]:
    """A process with its job, which is killed at the end; its folder, if it is not the jail's, is removed."""
    with ExitStack() as held:
        folder, info, report = None, None, None
        if jail.kind == "none":
            folder = tempfile.mkdtemp(prefix="sandbox-")
            held.callback(_remove, folder)
        else:
            info, report = held.enter_context(_pipe())
            os.set_blocking(info.fileno(), False)
        process = subprocess.Popen(
            jail.command(limits.folder_mb * 2**20, None if report is None else report.fileno()),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"LANG": "C.UTF-8"},
            pass_fds=[end.fileno() for end in (*ends, report) if end is not None],
            start_new_session=True,
        )
        child = Child(process, info)
        held.callback(child.kill)
        assert process.stdin is not None
        held.callback(_close, process.stdin)  # not before its end: it closes if this process is killed
        with suppress(BrokenPipeError):  # it died at once
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        yield child


def _close(pipe: IO[bytes]) -> None:
    with suppress(BrokenPipeError):
        pipe.close()


def _remove(folder: str) -> None:
    if not remove_folder(Path(folder)):
        warnings.warn(f"the sandbox's folder {folder} could not be removed", RuntimeWarning, stacklevel=2)
