"""Leases: one writer per folder, whoever else asks; dead holders are taken over, holders that were taken over stop.

Other machines are leases with another host name, as a shared file system shows them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtrain.runs.sole_writer import sole_writer
from llmtrain.system import lease as leases
from llmtrain.system.files import exclusive
from llmtrain.system.lease import Lease, LeaseLost, Watch, this_process, try_to_take

BEAT = 0.02
QUICK = 0.3  # seconds without a heartbeat after which another machine's holder is dead
HOLD = """
import sys, time
from pathlib import Path
from llmtrain.runs.sole_writer import sole_writer
with sole_writer(Path(sys.argv[1]), "run.dir=" + sys.argv[1], lambda line: print(line, flush=True)):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
print("released", flush=True)
"""


def hold(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that holds a folder for a time."""
    line = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def write_lease(folder: Path, number: int = 1, **changes: Any) -> Path:
    """The lease of a holder elsewhere."""
    path = folder / f"lease-{number:06d}.json"
    path.write_bytes(leases._content(replace(this_process(), **{"host": "node7", "job": "77", **changes}), 0))
    return path


def taken(folder: Path, said: list[str] | None = None, seconds: float = QUICK) -> Lease:
    """The lease of a folder, as soon as it can be had."""
    watch, lines = Watch(seconds), [] if said is None else said
    while isinstance(lease := try_to_take(folder, watch, lines.append, BEAT), str):
        time.sleep(BEAT)
    return lease


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def beating() -> Iterator[Any]:
    """Starts a thread that writes the heartbeat of a lease as its holder elsewhere would."""
    ended = threading.Event()
    threads = []

    def beat(path: Path) -> None:
        tree = json.loads(path.read_text())
        while not ended.wait(BEAT):
            tree["beats"] += 1
            path.write_text(json.dumps(tree))

    def start(path: Path) -> None:
        threads.append(threading.Thread(target=beat, args=(path,)))
        threads[-1].start()

    yield start
    ended.set()
    for thread in threads:
        thread.join()


def test_a_second_process_is_refused_by_naming_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    first = hold(folder, 60)
    assert line_of(first) == "held"
    try:
        second = hold(folder, 0)
        out, err = second.communicate(timeout=30)
    finally:
        first.kill()
        first.communicate()
    assert out == "" and second.returncode == 1
    host = this_process().host
    assert f"ValueError: run.dir={folder} is in use by process {first.pid} on {host}, Slurm job 4711 (restart 2)" in err
    assert "since 20" in err and "last heartbeat 20" in err and "stop it, or choose another folder" in err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_is_taken_over_at_once(folder: Path, number: signal.Signals) -> None:
    first = hold(folder, 60)
    assert line_of(first) == "held"
    first.send_signal(number)
    first.communicate()
    started = time.monotonic()
    second = hold(folder, 0)
    out, err = second.communicate(timeout=30)
    assert time.monotonic() - started < 0.5 * leases.WATCH_SECONDS
    lines = out.splitlines()
    assert lines[0].startswith(f"{folder}: taken over from process {first.pid} on ") and lines[1:] == [
        "held",
        "released",
    ]
    assert err == "" and names(folder) == []


def test_a_dead_child_that_nobody_has_waited_for_holds_nothing(folder: Path) -> None:
    first = hold(folder, 60)
    assert line_of(first) == "held"
    first.kill()
    while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(BEAT)
    taken(folder).release()
    first.communicate()


def test_a_process_that_got_the_pid_of_a_dead_holder_holds_nothing(folder: Path) -> None:
    write_lease(folder, host=this_process().host, pid_started="1")
    taken(folder, seconds=600).release()


@pytest.mark.parametrize(
    "elsewhere", [{"host": "node7"}, {"boot": "another"}, {"namespace": "pid:[1]"}, {"host": "node7", "job": None}]
)
def test_a_holder_elsewhere_without_a_heartbeat_is_taken_over(folder: Path, elsewhere: dict[str, Any]) -> None:
    write_lease(folder, **{"host": this_process().host} | elsewhere)
    said: list[str] = []
    started = time.monotonic()
    taken(folder, said).release()
    assert time.monotonic() - started >= QUICK
    assert len(said) == 1 and "taken over from" in said[0] and names(folder) == []


def test_a_holder_elsewhere_that_lives_is_seen_by_its_heartbeat_not_its_clock(folder: Path, beating: Any) -> None:
    path = write_lease(folder, since="1999-01-01 00:00:00")
    beating(path)
    said: list[str] = []
    holder = r"run.dir=x is in use by process .* on node7, Slurm job 77, since 1999"
    with pytest.raises(ValueError, match=holder), sole_writer(folder, "run.dir=x", said.append, Watch(30)):
        pytest.fail("held")
    assert len(said) == 1 and "watching for up to 30 s" in said[0] and path.exists()


def test_a_requeued_job_takes_over_from_itself_after_the_same_look(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    write_lease(folder, job="77")
    lease = taken(folder)
    assert "77 (restart 1)" in (folder / "lease-000002.json").read_text()
    lease.release()


def test_only_one_of_many_takes_over(folder: Path) -> None:
    write_lease(folder)
    found: list[Lease | str] = []

    def take() -> None:
        watch = Watch(0.0)
        found.append(try_to_take(folder, watch, lambda line: None, 60))

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [lease for lease in found if isinstance(lease, Lease)]
    assert len(held) == 1 and names(folder) == ["lease-000002.json"]
    held[0].release()


def test_who_was_taken_over_may_write_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "CHECK_SECONDS", 0.0)
    lease = taken(folder)
    lease.require()
    write_lease(folder, 2)
    with pytest.raises(LeaseLost, match=r"was taken over by process .* on node7, Slurm job 77"):
        lease.require()
    lease.release()
    assert names(folder) == ["lease-000002.json"]  # the other's


def test_the_heartbeat_notices_that_another_took_over(folder: Path) -> None:
    lease = taken(folder)
    (folder / "lease-000001.json").unlink()
    write_lease(folder, 1)
    lease._thread.join(30)  # it writes over nobody's lease
    with pytest.raises(LeaseLost):
        lease.require()
    lease.release()
    assert "node7" in (folder / "lease-000001.json").read_text()


def test_a_heartbeat_that_cannot_be_written_ends_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "CHECK_SECONDS", 0.0)
    lease = taken(folder)
    folder.rename(folder.with_name("moved"))
    time.sleep(5 * BEAT)
    lease.require()
    assert lease._thread.is_alive()
    lease.release()


def test_a_lease_that_was_deleted_by_hand_comes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "CHECK_SECONDS", 0.0)
    lease = taken(folder)
    (folder / "lease-000001.json").unlink()
    lease.require()
    assert names(folder) == ["lease-000001.json"]
    lease.release()
    assert names(folder) == []


@pytest.mark.parametrize("content", [b"", b'{"id": "a', b"[]"])
def test_a_lease_that_says_nothing_is_watched(folder: Path, content: bytes) -> None:
    (folder / "lease-000001.json").write_bytes(content)
    said: list[str] = []
    taken(folder, said).release()
    assert said == [f"{folder}: taken over from a process that is just starting, which no longer runs"]


def test_a_lease_without_a_heartbeat_names_its_holder(folder: Path) -> None:
    lease = write_lease(folder)
    content = json.loads(lease.read_text())
    del content["heartbeat"]
    lease.write_text(json.dumps(content))
    said: list[str] = []
    taken(folder, said).release()
    assert len(said) == 1 and "on node7" in said[0] and "(last heartbeat unknown)" in said[0]


def test_an_error_releases_the_folder_and_leaves_none_that_was_not_there(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path / "a" / "b", "it", print):
        raise ZeroDivisionError
    assert list((tmp_path / "a").iterdir()) == []


def test_a_build_waits_for_one_on_another_machine(folder: Path) -> None:
    path = write_lease(folder)
    said: list[str] = []

    def report(line: str) -> None:
        said.append(line)
        path.unlink()  # it ends

    with exclusive(folder, report):
        assert names(folder) == ["lease-000001.json", "lock"] and "node7" not in (folder / path.name).read_text()
    assert len(said) == 1 and "on node7, Slurm job 77" in said[0] and said[0].endswith("builds this; waiting for it")
    assert names(folder) == ["lock"]


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        ("1 node0:29500", "rank 1 of this launch"),
        ("1 node0:29501", "another process"),
        ("", "another process"),
        ("torn", "another process"),
    ],
)
def test_a_build_by_a_rank_of_the_same_launch_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, holder: str, words: str
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    with (folder / "lock").open("w") as other:
        other.write(holder)
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)

        def report(line: str) -> None:
            said.append(line)
            fcntl.flock(other, fcntl.LOCK_UN)

        with exclusive(folder, report):
            assert (folder / "lock").read_text() == "0 node0:29500"
    assert said == [f"{folder}: {words} builds this; waiting for it"]
    assert (folder / "lock").read_text() == ""


def test_a_build_on_a_file_system_without_locks_is_held_by_its_lease(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("llmtrain.system.files.fcntl.flock", refuse)
    with exclusive(folder, print):
        assert isinstance(try_to_take(folder, Watch(), print), str)
    assert names(folder) == ["lock"]
