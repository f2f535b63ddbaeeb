"""Files written so that a kill, a full disk or a second process never leaves a part that looks whole.

Also how an error reads in one line, and what a full disk is called.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llmtrain.system.lease import POLL_SECONDS, Lease, Watch, try_to_take

LOCK = "lock"


def is_disk_full(error: OSError) -> bool:
    """Whether an error means that there is no space left to write."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


FREE_CACHE = "free some space or move data.cache_dir"
FREE_RUN = "free some space or move run.dir"


def disk_full(place: object, fix: str = FREE_CACHE) -> ValueError:
    """The error of a full disk, in the words that every room uses: `PLACE: the disk is full; FIX`."""
    return ValueError(f"{place}: the disk is full; {fix}")


@contextlib.contextmanager
def full_disk_named(place: object, fix: str = FREE_CACHE) -> Iterator[None]:
    """Turns the error of a full disk into `disk_full`; other errors pass."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full(place, fix) from None


def one_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its class if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def cache_root(asked: str | None = None) -> Path:
    """The folder of what runs share: `asked`, else `$LLMTRAIN_CACHE`, else `~/.cache/llmtrain`."""
    return Path(asked or os.environ.get("LLMTRAIN_CACHE") or "~/.cache/llmtrain").expanduser()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, tree: Mapping[str, Any], fix: str = FREE_CACHE) -> None:
    """Write a JSON file as `write_bytes` does."""
    write_bytes(path, (json.dumps(tree, indent=2) + "\n").encode("utf-8"), fix)


def write_bytes(path: Path, content: bytes, fix: str = FREE_CACHE) -> None:
    """Write a file as `write_whole` does."""
    write_whole(path, lambda file: file.write(content), fix)


def write_whole(path: Path, write: Callable[[BinaryIO], object], fix: str = FREE_CACHE) -> None:
    """Write a file whole or not at all, so that it survives a crash of the machine; one writer at a time.

    Raises ValueError, with the `fix`, if the disk is full.
    """
    partial = path.with_name(f"{path.name}.partial")
    with full_disk_named(path, fix):
        try:
            with partial.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    partial.rename(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def exclusive_if_free(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock if no process has it, and give whether it is held; False also for one without a lock."""
    try:
        file = (folder / LOCK).open("r+")
    except OSError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def exclusive(folder: Path, report: Callable[[str], None], key: str = "data.cache_dir") -> Iterator[None]:
    """Hold a folder; a second process waits here, on any machine that shares the file system.

    The system's lock orders the processes of a machine, and is freed if one dies; a lease excludes other machines, on
    which the lock may mean nothing. Raises ValueError, naming the configuration's `key`, if the folder cannot be made
    or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{key}: {folder} cannot be made ({error.strerror}); name another folder") from None
    try:
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error.strerror}); set {key} to another") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{folder}: another process builds this; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: the lease alone excludes others
        lease = _waited_for(folder, report, key)
        try:
            yield
        finally:
            lease.release()


def _waited_for(folder: Path, report: Callable[[str], None], key: str) -> Lease:
    """The lease of a folder, once its holder on another machine has released it or is dead."""
    watch, is_waiting = Watch(), False
    try:
        while isinstance(lease := try_to_take(folder, watch, report), str):
            if not is_waiting:
                report(f"{folder}: {lease} builds this; waiting for it")
                is_waiting = True
            time.sleep(POLL_SECONDS)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(folder) from None
        raise ValueError(f"{folder}: cannot be written ({error.strerror}); set {key} to another") from None
    return lease
