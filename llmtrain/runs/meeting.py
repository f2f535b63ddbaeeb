"""What the processes of a launch compare when they meet, before they form a group and before anything is trained.

A folder that is local to each node, another version or configuration on one of them, or unequal GPUs would show late,
as a hang or as numbers that nobody can explain. Through the store where torchrun's processes find each other:

    rank 0      writes a file into the run's folder; puts its name, and what rank 0 runs, into the store
    the others  look for the file, compare, put what differs
    rank 0      puts the first difference, or none; every rank reads it
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from llmtrain.runs.facts import first_difference
from llmtrain.runs.folder import package_versions
from llmtrain.system.run_files import MEETING_PREFIX
from llmtrain.system.stop_signal import Stopped

POLL_SECONDS = 0.1
VISIBLE_SECONDS = 15.0
"""How long a file may take to be seen on another node: NFS asks the server again after seconds."""
LEAVING_SECONDS = 5.0
"""How long a rank that is about to leave waits for the others: that they come, or have read why."""
PACKAGE = Path(__file__).resolve().parents[1]

_numbers = itertools.count()  # a process trains several runs in turn, and meets for each


def check_meeting(
    folder: Path, config: Mapping[str, Any], timeout_minutes: float, stop_requested: Callable[[], bool]
) -> None:
    """Meet the other processes of a launch. Raises ValueError, on each, if they cannot train together.

    Raises Stopped if a signal came and some of them do not come.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "LOCAL_RANK" not in os.environ:
        return
    rank, number = int(os.environ["RANK"]), next(_numbers)
    prefix = f"llmtrain/meeting/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{number}"
    meeting = Meeting(PrefixStore(prefix, _store()), rank, world_size, timeout_minutes * 60, stop_requested)
    complaint = meeting.as_main(folder, config) if rank == 0 else meeting.as_other(folder, config)
    if complaint:
        raise ValueError(complaint)


class Meeting:
    """One process among those that meet. `stop_requested`: whether a signal asks it to end."""

    def __init__(
        self, store: Store, rank: int, world_size: int, timeout_seconds: float, stop_requested: Callable[[], bool]
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._timeout, self._stop_requested = timeout_seconds, stop_requested

    def as_main(self, folder: Path, config: Mapping[str, Any]) -> str:
        """Rank 0: what is wrong, or nothing."""
        path = folder / f"{MEETING_PREFIX}{uuid.uuid4().hex}"
        is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            return self._told(f"run.dir={folder}: cannot be written ({error.strerror}); choose another folder")
        try:
            if missing := missing_device():
                return self._told(missing)
            self._store.set("main", json.dumps({"file": path.name, "started_as": started_as(config)}))
            ranks = range(1, self._world_size)
            self._wait([str(rank) for rank in ranks])
            complaints = (self._store.get(str(rank)).decode() for rank in ranks)
            return self._told(next(filter(None, complaints), ""))
        finally:
            path.unlink(missing_ok=True)
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # what is refused leaves nothing

    def _told(self, verdict: str) -> str:
        """Rank 0: the verdict, put where the others read it; if it is a refusal, once they have, or after a while.

        The store may end with this process.
        """
        self._store.set("verdict", verdict)
        deadline = time.monotonic() + LEAVING_SECONDS
        read = [_read_by(rank) for rank in range(1, self._world_size)]
        while verdict and not self._store.check(read) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return verdict

    def as_other(self, folder: Path, config: Mapping[str, Any]) -> str:
        """Another rank: what is wrong with it or another one, or nothing."""
        if self._wait_for_one_of("main", "verdict") == "main":
            main = json.loads(self._store.get("main"))
            complaint = missing_device() or difference(main["started_as"], started_as(config), self._rank)
            if not complaint and not is_seen(folder / main["file"]):
                complaint = (
                    f"run.dir={folder} of rank {self._rank} on {socket.gethostname()} is not the folder that rank 0 on "
                    f"{main['started_as']['host']} writes to: choose a folder that all nodes share"
                )
            self._store.set(str(self._rank), complaint)
        self._wait(["verdict"])
        verdict = self._store.get("verdict").decode()
        if verdict:
            self._store.set(_read_by(self._rank), "")
        return verdict

    def _wait_for_one_of(self, *keys: str) -> str:
        """The first of the keys that is there."""
        waited = _Waited(self._timeout, self._stop_requested)
        while True:
            for key in keys:
                if self._store.check([key]):
                    return key
            if waited.too_long():
                raise ValueError(self._missing([0]))

    def _wait(self, keys: Sequence[str]) -> None:
        """Wait for all of the keys, which other ranks put."""
        waited = _Waited(self._timeout, self._stop_requested)
        while not self._store.check(list(keys)):
            if waited.too_long():
                missing = [key for key in keys if not self._store.check([key])]
                raise ValueError(self._missing([int(key) for key in missing if key.isdecimal()] or [0]))

    def _missing(self, ranks: Sequence[int]) -> str:
        named = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
        return (
            f"waited {self._timeout / 60:g} minutes for rank {named} of {self._world_size}, which did not start "
            "training: look at its log, or raise run.timeout_minutes if it was only slow"
        )


def _read_by(rank: int) -> str:
    """The key by which a rank says that it has read the verdict."""
    return f"read/{rank}"


class _Waited:
    """How long a wait has taken, of which each question is a moment."""

    def __init__(self, timeout_seconds: float, stop_requested: Callable[[], bool]) -> None:
        self._since, self._timeout, self._stop_requested = time.monotonic(), timeout_seconds, stop_requested
        self._stopped_since: float | None = None

    def too_long(self) -> bool:
        """Raises Stopped if a signal has been there for a while."""
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        if self._stop_requested():
            self._stopped_since = self._stopped_since or now
            if now - self._stopped_since > LEAVING_SECONDS:
                raise Stopped
        return now - self._since > self._timeout


def started_as(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal on every rank, and the host that it is on."""
    return {
        "host": socket.gethostname(),
        "num_processes": os.environ.get("LOCAL_WORLD_SIZE", ""),
        "num_devices": torch.accelerator.device_count(),
        "device": _device(int(os.environ["LOCAL_RANK"])),
        "packages": {"Python": platform.python_version(), **dict(package_versions())},
        "code": _code(),
        "config": config,
    }


def missing_device() -> str:
    """That there is no device for this process, as an error for the user; nothing: there is, or it is on a CPU."""
    num_devices = torch.accelerator.device_count()
    if not num_devices or int(os.environ["LOCAL_RANK"]) < num_devices:
        return ""
    return (
        f"{os.environ.get('LOCAL_WORLD_SIZE', 'more')} processes were started on {socket.gethostname()}, which has "
        f"{num_devices} devices to use: start one per device"
    )


def _device(local_rank: int) -> str:
    """The kind of this process's device."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or torch.accelerator.device_count() == 0:
        return "a CPU"
    if accelerator.type == "cuda":  # asked of this process's own, or each would take memory of the first
        return f"a GPU of compute capability {'.'.join(map(str, torch.cuda.get_device_capability(local_rank)))}"
    return f"a device of type {accelerator.type}"


def difference(main: Mapping[str, Any], here: Mapping[str, Any], rank: int) -> str:
    """What rank 0 and this one cannot train together with, as an error for the user; nothing: they can."""
    this, other = f"rank {rank} on {here['host']}", f"rank 0 on {main['host']}"
    if main["device"] != here["device"]:
        return f"{this} has {here['device']}, {other} {main['device']}: ask for nodes of one kind"
    if main["num_processes"] != here["num_processes"]:
        return (
            f"the node of {this} has {here['num_processes']} processes, that of {other} {main['num_processes']}: start "
            "equally many on each"
        )
    if main["num_devices"] != here["num_devices"]:
        return f"{this} sees {here['num_devices']} devices, {other} {main['num_devices']}: ask for as many on each node"
    if (package := first_difference(main["packages"], here["packages"])) is not None:
        name, there, version = package
        return f"{this} has {name} {version}, {other} {there}: give all nodes one environment"
    if main["code"] != here["code"]:
        return f"{this} and {other} run different code of llmtrain: give all nodes one checkout"
    if (setting := first_difference(main["config"], here["config"])) is not None:
        key, there, value = setting
        return (
            f"{this} was started with {key}={value!r}, {other} with {there!r}: give all nodes one command and one "
            "configuration"
        )
    return ""


def is_seen(path: Path) -> bool:
    """Whether a file that another node has just written can be seen here."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


@cache
def _store() -> Store:
    """Where the processes find each other: torchrun's, or rank 0's."""
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=30)))
    return store


@cache
def _code() -> str:
    """A digest of this package's source."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
