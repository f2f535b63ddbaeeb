"""Writing to disk so that a kill, a full disk or a second process never leaves a part that looks whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmtrain.protocols import Report

LOCK = "lock"


def is_disk_full(error: OSError) -> bool:
    """Whether an error means that there is no room left to write."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full_error(path: Path, later: str = "") -> ValueError:
    """The error of a full disk under `data.cache_dir`; `later` says what happens on the next start."""
    return ValueError(f"{path}: the disk is full; free some space or move data.cache_dir{later}")


def cache_root(asked: str | None = None) -> Path:
    """Where what many runs share is kept: `asked`, else `$LLMTRAIN_CACHE`, else `~/.cache/llmtrain`."""
    return Path(asked or os.environ.get("LLMTRAIN_CACHE") or "~/.cache/llmtrain").expanduser()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    partial.rename(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, so that it outlives a crash of the machine; one writer at a time.

    Raises ValueError where the disk is full.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        partial.unlink(missing_ok=True)
        if not is_disk_full(error):
            raise
        raise disk_full_error(path) from None
    partial.rename(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def exclusive(folder: Path, report: Report, key: str = "data.cache_dir") -> Iterator[None]:
    """Hold a folder's lock; whoever comes second waits here, and the system frees the lock of a process that dies.

    Raises ValueError, naming the configuration's `key`, where the folder cannot be made or written, or its file
    system has no locks.
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
        except OSError as error:
            raise ValueError(
                f"{folder}: this file system cannot lock files ({error.strerror}); set {key} to one that can"
            ) from None
        yield
