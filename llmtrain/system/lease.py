"""The right to write to a folder, held by one process of all that share its file system.

A lease is a file in the folder that only one process can create (O_EXCL), which says who holds it, and whose heartbeat
the holder rewrites. Locks of the system are no help here: `flock` holds on one machine only on GPFS, and is granted to
everyone on many mounts of Lustre and NFS.

    lease-000001.json     left by a process that was killed
    lease-000002.json     the one that took over: the highest number counts

Taking over is creating the next number, which only one of several can do. Nobody removes the lease of a holder that
may still live, and a holder that finds a higher number has lost its own, and must write no more. A holder on this
machine lives if its process does; one on another machine if its heartbeat changes while it is watched. Clocks are never
compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

LEASE = re.compile(r"lease-(\d{6})\.json")
BEAT_SECONDS = 10.0
WATCH_SECONDS = 60.0  # without a heartbeat in so many, a holder on another machine is dead
POLL_SECONDS = 0.2
CHECK_SECONDS = 1.0  # how long a look at the folder is good for

Verdict = Literal["alive", "dead", "unknown"]


class LeaseLost(ValueError):
    """Another process has taken the folder over."""


@dataclass(frozen=True)
class Holder:
    """What a lease says of who holds it."""

    id: str
    host: str
    boot: str | None  # of this start of the machine: pids are of it
    namespace: str | None  # containers count their pids each from 1
    pid: int
    pid_started: str | None  # another process may get the pid later
    job: str | None  # Slurm's, with how often it was requeued
    since: str

    @property
    def machine(self) -> tuple[str, str | None, str | None]:
        return self.host, self.boot, self.namespace

    def __str__(self) -> str:
        job = "" if self.job is None else f", Slurm job {self.job}"
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


@dataclass
class Watch:
    """What was seen of the leases of a folder by a process that waits for it."""

    seconds: float = WATCH_SECONDS
    seen: dict[int, tuple[bytes, float]] = field(default_factory=dict)  # number -> content, since when it is that
    changed: set[int] = field(default_factory=set)  # leases whose heartbeat changed

    def verdict(self, number: int, content: bytes) -> Verdict:
        """Whether the holder of a lease lives."""
        holder = _holder(content)
        if holder is not None and holder.machine == this_process().machine:
            return "alive" if _lives(holder) else "dead"
        before, since = self.seen.get(number, (content, time.monotonic()))
        if holder is None and _holder(before) is not None:
            return "unknown"  # it is being rewritten just now
        if before != content:
            self.changed.add(number)
            since = time.monotonic()
        self.seen[number] = content, since
        if time.monotonic() - since >= self.seconds:
            return "dead"
        return "alive" if number in self.changed else "unknown"


class Lease:
    """A lease that this process holds; its heartbeat goes on until `release`."""

    def __init__(self, folder: Path, number: int, holder: Holder, beat_seconds: float) -> None:
        self._folder, self._number, self._holder = folder, number, holder
        self._path = _path(folder, number)
        self._released = threading.Event()
        self._beats, self._lost, self._checked = 0, "", time.monotonic()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, args=(beat_seconds,), daemon=True, name="lease")
        self._thread.start()

    def require(self) -> None:
        """Raise LeaseLost, naming the new holder, if this process may no longer write."""
        if time.monotonic() - self._checked > CHECK_SECONDS:
            self._look()
        if self._lost:
            raise LeaseLost(
                f"{self._folder} was taken over by {self._lost}: this process stops without writing any more"
            )

    def release(self) -> None:
        """Give the folder back; a second call does nothing."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            held = _holder(self._path.read_bytes())
            if held is not None and held.id == self._holder.id:
                self._path.unlink()

    def _beat(self, seconds: float) -> None:
        """Rewrite the heartbeat. A failure, such as a full disk, ends no run: at worst another takes over."""
        while not self._released.wait(seconds):
            self._look()
            if self._lost:
                return
            self._beats += 1
            with contextlib.suppress(OSError), self._path.open("rb+") as file:
                content = _content(self._holder, self._beats)
                file.write(content)
                file.truncate(len(content))
                file.flush()
                os.fsync(file.fileno())

    def _look(self) -> None:
        """Note if there is a later lease, or another in the place of this one."""
        with self._lock, contextlib.suppress(OSError):  # a folder that cannot be read says nothing of another holder
            self._checked = time.monotonic()
            for number in _numbers(self._folder):
                if number < self._number:
                    continue
                holder = _holder(_path(self._folder, number).read_bytes())
                if number > self._number or (holder is not None and holder.id != self._holder.id):
                    self._lost = str(holder or "another process")
                    return
            if not self._path.exists():  # deleted, by hand perhaps: this process still holds the folder
                _create(self._path, _content(self._holder, self._beats))


def try_to_take(
    folder: Path, watch: Watch, report: Callable[[str], None], beat_seconds: float = BEAT_SECONDS
) -> Lease | str:
    """The lease of a folder, taken over with one line from a holder that is dead; or who holds it.

    `watch.verdict` of that holder may be "unknown" at first: ask again. Raises OSError if the folder cannot be written.
    """
    dead: list[int] = []
    for number in sorted(_numbers(folder), reverse=True):
        try:
            content = _path(folder, number).read_bytes()
        except FileNotFoundError:
            continue  # released just now
        verdict = watch.verdict(number, content)
        if verdict != "dead":
            return described(content)
        if not dead:
            report(f"{folder}: taken over from {described(content)}, which no longer runs")
        dead.append(number)
    number = max(dead, default=0) + 1
    holder = this_process()
    if not _create(_path(folder, number), _content(holder, 0)):
        return "another process that started at the same time"
    late = [other for other in _numbers(folder) if other != number and other not in dead]
    if late:  # it came when the one before was gone already
        _path(folder, number).unlink()
        return "another process that started at the same time"
    for other in dead:
        _path(folder, other).unlink(missing_ok=True)
    return Lease(folder, number, holder, beat_seconds)


def described(content: bytes) -> str:
    """Who holds a lease, and when its heartbeat was last written by its own clock."""
    holder = _holder(content)
    if holder is None:
        return "a process that is just starting"
    return f"{holder} (last heartbeat {json.loads(content).get('heartbeat', 'unknown')})"


def this_process() -> Holder:
    """This process as a holder."""
    return Holder(
        id=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot=_text("/proc/sys/kernel/random/boot_id"),
        namespace=_namespace(),
        pid=os.getpid(),
        pid_started=_started(os.getpid()),
        job=_slurm_job(),
        since=_now(),
    )


def _slurm_job() -> str | None:
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT")
    return job if job is None or not restarts else f"{job} (restart {restarts})"


def _lives(holder: Holder) -> bool:
    """Whether a process of this machine still runs and is the one that took the lease."""
    return holder.pid_started is not None and _started(holder.pid) == holder.pid_started


def _started(pid: int) -> str | None:
    """When a process started, by the system's own count; None if it is gone, or dead but not yet reaped."""
    stat = _text(f"/proc/{pid}/stat")
    if stat is not None:
        fields = stat.rpartition(")")[2].split()  # the name before may hold anything
        return None if fields[0] in "ZX" else fields[19]
    if Path("/proc/self/stat").exists():
        return None
    listed = subprocess.run(["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, started = listed.stdout.strip().partition(" ")
    return None if not state or state[0] in "ZX" else " ".join(started.split())


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _path(folder: Path, number: int) -> Path:
    return folder / f"lease-{number:06d}.json"


def _numbers(folder: Path) -> list[int]:
    return sorted(int(found[1]) for name in os.listdir(folder) if (found := LEASE.fullmatch(name)))


def contents(folder: Path) -> Iterator[tuple[int, bytes]]:
    """(number, content) of each lease of a folder."""
    for number in _numbers(folder):
        with contextlib.suppress(FileNotFoundError):
            yield number, _path(folder, number).read_bytes()


def _content(holder: Holder, beats: int) -> bytes:
    return json.dumps({**vars(holder), "beats": beats, "heartbeat": _now()}, indent=2).encode() + b"\n"


def _holder(content: bytes) -> Holder | None:
    """Who a lease names; None if it is not written yet."""
    try:
        tree: dict[str, Any] = json.loads(content)
        return Holder(**{name: tree[name] for name in Holder.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        return None


def _create(path: Path, content: bytes) -> bool:
    """Create a file that was not there, with its content on disk; False if it is there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True
