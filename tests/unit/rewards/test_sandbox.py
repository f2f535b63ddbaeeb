"""Untrusted code ends, in time, and touches nothing outside its folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from llmtrain.rewards.asserts import split
from llmtrain.rewards.jail import INSIDE, find_jail
from llmtrain.rewards.remove import remove_folder
from llmtrain.rewards.sandbox import Limits, Verdict, run_all
from llmtrain.system.cores import share_of_cores

Found = TypeVar("Found")

TESTS = ["assert f(1) == 2"]
LIMITS = Limits(seconds=1, memory_mb=256)
NEVER_SECONDS = 100_000.0  # a test that waits for this runs into pytest's own limit
SOLVED = "\ndef f(x):\n    return x + 1"


def verdict(code: str, limits: Limits = LIMITS) -> Verdict:
    return run_all([(code, split(TESTS))], limits)[0]


def test_a_right_program_passes() -> None:
    assert verdict(SOLVED).num_passed == 1


def test_each_test_counts_for_itself() -> None:
    tests = ["assert f(1) == 2", "assert f(1) == 3", "assert g(1) == 2", "assert f(2) == 3"]
    assert run_all([(SOLVED, split(tests))], LIMITS)[0].num_passed == 2


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
    programs = [(SOLVED, split(TESTS)), ("def f(x): return x", split(TESTS)), (SOLVED, split(TESTS * 3))]
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


def test_code_without_an_end_is_out_of_time_and_code_that_ends_itself_has_crashed() -> None:
    codes = {
        "wrong": "def f(x): return x",
        "passed": SOLVED,
        "error": "def f(x) return x",
        "timeout": f"import time; time.sleep({NEVER_SECONDS})",
        "crash": "import os; os._exit(0)",
    }
    verdicts = run_all([(code, split(TESTS)) for code in codes.values()], LIMITS)
    assert [verdict.outcome for verdict in verdicts] == list(codes)


def test_tests_that_passed_before_the_time_was_up_count() -> None:
    code = "def f(x):\n    while x == 2: pass\n    return x + 1"
    [verdict] = run_all([(code, split(["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4"]))], LIMITS)
    assert (verdict.num_passed, verdict.outcome) == (1, "timeout")


@pytest.mark.parametrize("mode", ["auto", "limits"])
@pytest.mark.parametrize("hooks", [True, False])
def test_1500_nested_folders_neither_stop_the_run_nor_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any, hooks: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import os\ntry:\n    for _ in range(1500): os.mkdir('a'); os.chdir('a')\nexcept OSError: pass" + SOLVED
    [verdict] = run_all([(code, split(TESTS))], Limits(seconds=5), find_jail(mode), hooks=hooks)
    assert verdict.num_passed == 1
    assert list(tmp_path.iterdir()) == []


def test_a_deep_and_locked_folder_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("a", dir_fd=here)
        os.close(os.open("b", os.O_CREAT, dir_fd=here))
        inner = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.fchmod(here, 0)
    os.close(here)
    (folder / "c").symlink_to(tmp_path)
    assert remove_folder(folder) and list(tmp_path.iterdir()) == []
    assert not remove_folder(folder)


def test_what_a_program_leaves_behind_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    descriptors = len(os.listdir("/dev/fd"))
    verdict("open('a.txt', 'w')\nwhile True: pass")
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/dev/fd")) == descriptors


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("mode", ["auto", "limits"])
def test_a_killed_run_leaves_no_program_behind(tmp_path: Path, mode: str) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(INSIDE.parents[2])!r})
from llmtrain.rewards.asserts import split
from llmtrain.rewards.jail import find_jail
from llmtrain.rewards.sandbox import Limits, run_all
run_all([("import time; time.sleep(120)", split(["assert True"]))], Limits(seconds=50), find_jail({mode!r}))
"""
    run = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    programs = wait_for(lambda: found if len(found := descendants(run.pid, "llmtrain.rewards.inside")) >= 2 else None)
    run.kill()
    run.wait()
    for program in programs:
        wait_for(lambda program=program: has_ended(program) or None)


def descendants(process: int, text: str) -> list[int]:
    """The processes that a process has started, they and theirs, whose commands hold a text."""
    started = psutil.Process(process).children(recursive=True)
    return [child.pid for child in started if text in command_of(child.pid)]


def command_of(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace")
    return ""


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mode", ["auto", "limits"])
def test_programs_leave_no_dead_process_to_be_collected(mode: Any) -> None:
    script = f"""
import ctypes, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # what is left of its programs becomes its own
sys.path.insert(0, {str(INSIDE.parents[2])!r})
from llmtrain.rewards.asserts import split
from llmtrain.rewards.jail import find_jail
from llmtrain.rewards.sandbox import Limits, run_all
tests = split(["assert f() == 1"])
programs = [("def f(): return 1", tests), ("import time; time.sleep(1000)", tests)]
print(*[one.outcome for one in run_all(programs, Limits(seconds=5), find_jail({mode!r}))])
sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "passed timeout\n"
        assert psutil.Process(run.pid).children() == []  # dead ones too
        run.communicate()
