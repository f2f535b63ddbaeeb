"""Where a sweep keeps its trials: Optuna's journal in the sweep's folder, which any number of processes share.

A journal is a file that lines are appended to, under a lock. Ours holds on NFS and Lustre, and a holder that was killed
blocks nobody: on one machine it is known by its process, across machines by its heartbeat (`system/lease.py`). A line
that a kill cut short is removed by the next writer, before it appends to it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.system.files import exclusive

if TYPE_CHECKING:
    from optuna.storages import JournalStorage

JOURNAL = "journal.log"


class StudyLock:
    """The lock of a sweep's folder, held by one process at a time, which may take it again while it has it.

    `acquire` and `release` are what Optuna's journal calls.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._held: contextlib.ExitStack | None = None
        self._depth = 0

    def acquire(self) -> bool:
        if self._depth == 0:
            stack = contextlib.ExitStack()
            stack.enter_context(exclusive(self._folder, lambda _line: None, "--dir"))
            self._held = stack
            _drop_torn_line(self._folder / JOURNAL)
        self._depth += 1
        return True

    def release(self) -> None:
        assert self._held is not None, "a lock is released by who holds it"
        self._depth -= 1
        if self._depth == 0:
            self._held.close()
            self._held = None

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def open_storage(folder: Path, lock: StudyLock) -> JournalStorage:
    """The journal of the lock's folder."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with lock:
        return JournalStorage(JournalFileBackend(str(folder.absolute() / JOURNAL), lock_obj=lock))  # type: ignore[arg-type]


def _drop_torn_line(path: Path) -> None:
    """Remove what a kill left after the last whole line: the next line would be appended to it."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return
    if size == 0:
        return
    with path.open("rb+") as file:
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        os.fsync(file.fileno())
