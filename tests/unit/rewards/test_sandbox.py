"""Untrusted code ends, in time, and touches nothing outside its folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from llmtrain.rewards.sandbox import CHILD, Limits, Verdict, run_all
from llmtrain.system.device import share_of_cores

Found = TypeVar("Found")

TESTS = ["assert f(1) == 2"]
LIMITS = Limits(seconds=1, memory_mb=256)
NEVER_SECONDS = 100_000.0  # a test that waits for this runs into pytest's own limit
SOLVED = "\ndef f(x):\n    return x + 1"


def verdict(code: str, limits: Limits = LIMITS) -> Verdict:
    return run_all([(code, TESTS)], limits)[0]


def kernel_walls() -> tuple[str, ...]:
    """What this kernel offers; elsewhere only the interpreter's hooks hold."""
    return verdict(SOLVED).walls


def test_a_right_program_passes() -> None:
    assert verdict(SOLVED).num_passed == 1


def test_each_test_counts_for_itself() -> None:
    tests = ["assert f(1) == 2", "assert f(1) == 3", "assert g(1) == 2", "assert f(2) == 3"]
    assert run_all([(SOLVED, tests)], LIMITS)[0].num_passed == 2


def test_programs_at_once_share_the_processors_among_the_processes_of_a_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert share_of_cores(os.environ) == 6
    for processes, programs in (("2", 3), ("4", 1), ("8", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert share_of_cores(os.environ) == programs


def test_verdicts_come_in_order() -> None:
    programs = [(SOLVED, TESTS), ("def f(x): return x", TESTS), (SOLVED, TESTS * 3)]
    assert [one.num_passed for one in run_all(programs, LIMITS)] == [1, 0, 3]


@pytest.mark.parametrize(
    "code",
    [
        "def f(x): return",
        "def f(x) return x",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "def f(x): return f(x)",
        "f = lambda x: exit(0)",
        "input()" + SOLVED,
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'{\"num_passed\": 1}')\n    except OSError: pass",
    ],
)
def test_a_wrong_program_passes_nothing(code: str) -> None:
    assert verdict(code).num_passed == 0


@pytest.mark.parametrize("code", ["while True: pass", "f = lambda x: sum(iter(int, 1))"])
def test_a_loop_is_ended_by_its_processor_time(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "clock_seconds", property(lambda limits: NEVER_SECONDS))
    assert verdict(code).num_passed == 0  # it would not end by itself


def test_a_program_that_sleeps_is_ended_by_the_clock() -> None:
    assert verdict(f"import time; time.sleep({NEVER_SECONDS})").num_passed == 0


@pytest.mark.parametrize("code", ["x = bytearray(10**9)", "x = []\nwhile True: x.append(bytearray(10**7))"])
def test_memory_is_limited(code: str) -> None:
    assert verdict(code + SOLVED).num_passed == 0


def test_a_program_may_write_into_its_folder() -> None:
    code = (
        "import os\nwith open('a.txt', 'w') as file: file.write('x')\nos.remove('a.txt')\nopen(os.devnull, 'w').close()"
    )
    assert verdict(code + SOLVED).num_passed == 1


def test_a_program_may_use_threads() -> None:
    code = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()"
    assert verdict(code + SOLVED).num_passed == 1


def test_file_size_is_limited() -> None:
    assert verdict("open('a.txt', 'wb').write(bytes(10**7))" + SOLVED).num_passed == 0


@pytest.mark.parametrize(
    "code",
    [
        "open({path!r}, 'w')",
        "open({path!r}, 'a')",
        "import os; os.open({path!r}, os.O_WRONLY | os.O_TRUNC)",
        "import os; os.truncate({path!r}, 0)",
        "import os; os.remove({path!r})",
        "import os; os.rename({path!r}, 'here')",
        "import os; os.symlink({path!r}, 'here'); open('here', 'w')",
        "import os; os.chmod({path!r}, 0)",
        "import pathlib; pathlib.Path({path!r}).with_name('new').mkdir()",
        "import shutil; shutil.rmtree({folder!r})",
        "import sqlite3; sqlite3.connect({path!r} + '.db')",
        "import os; os.path.realpath = lambda path: os.getcwd(); open({path!r}, 'w')",
    ],
)
def test_files_outside_stay_as_they_are(tmp_path: Path, code: str) -> None:
    file = tmp_path / "kept.txt"
    file.write_text("kept", encoding="utf-8")
    mode = file.stat().st_mode
    outcome = verdict(code.format(path=str(file), folder=str(tmp_path)) + SOLVED)
    assert file.read_text(encoding="utf-8") == "kept" and file.stat().st_mode == mode
    assert [found.name for found in tmp_path.iterdir()] == ["kept.txt"]
    assert outcome.num_passed == 0


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.fork()",
        "import os; os.system('true')",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing; multiprocessing.Process(target=print).start()",
        "import os; os.kill(os.getppid(), 0)",
        "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
        "import ctypes; ctypes.CDLL(None)",
        "import socket; socket.socket()",
        "import _socket; _socket.socket()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_processes_signals_and_the_network_are_refused(code: str) -> None:
    assert verdict(code + SOLVED).num_passed == 0


def test_a_fork_bomb_starts_nothing() -> None:
    # A fork that succeeds would make the program sleep until it is ended, with nothing passed.
    bomb = f"try: os.fork(); time.sleep({NEVER_SECONDS})\n    except OSError: pass"
    assert verdict(f"import os, time\nfor _ in range(100):\n    {bomb}{SOLVED}").num_passed == 1


def test_the_kernel_refuses_what_gets_around_the_hooks(tmp_path: Path) -> None:
    walls = kernel_walls()
    if not {"seccomp", "landlock"} <= set(walls):
        pytest.skip(f"this kernel offers only {walls}")
    script = f"""
import os, socket, sys, threading
sys.path.insert(0, {str(CHILD.parent)!r})
import sandbox_child
os.chdir({str(tmp_path)!r})
os.mkdir("inside")
sandbox_child._kernel_walls("inside", {{"seconds": 5, "memory_bytes": 2**29, "file_bytes": 2**20}})
tried = {{
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "network": socket.socket,
    "signal": lambda: os.kill(os.getppid(), 0),
    "write": lambda: open("outside.txt", "w"),
    "make": lambda: os.mkdir("outside"),
    "own file": lambda: open("inside/file.txt", "w").close(),
    "thread": lambda: threading.Thread(target=int).start(),
}}
for name, attempt in tried.items():
    try:
        attempt()
    except PermissionError:
        print("refused", name)
"""
    output = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    refused = ["fork", "exec", "network", "signal", "write", "make"]
    assert output.stdout.splitlines() == [f"refused {name}" for name in refused]
    assert [found.name for found in tmp_path.iterdir()] == ["inside"]


def test_what_a_program_leaves_behind_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    descriptors = len(os.listdir("/dev/fd"))
    verdict("open('a.txt', 'w')\nwhile True: pass")
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/dev/fd")) == descriptors


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_killed_run_leaves_no_program_behind(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(CHILD.parents[2])!r})
from llmtrain.rewards.sandbox import Limits, run_all
code = "import os, time; open(f'{{os.getpid()}}.pid', 'w').close(); time.sleep(120)"
run_all([(code, [])], Limits(seconds=50))
"""
    run = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    program = int(wait_for(lambda: next((file.stem for file in tmp_path.glob("*/*.pid")), None)))
    run.kill()
    run.wait()
    wait_for(lambda: has_ended(program) or None)


def has_ended(process: int) -> bool:
    """Whether a process is gone, or dead and not yet collected."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    return status.rsplit(")", 1)[1].split()[0] == "Z"


def wait_for(look: Callable[[], Found | None]) -> Found:
    """What `look` finds, within a minute."""
    until = time.monotonic() + 60
    while (found := look()) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    return found
