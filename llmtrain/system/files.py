"""Files written so that a kill, a full disk or a second process never leaves a part that looks whole.

Also how an error reads in one line, and what a full disk is called.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from llmtrain.system.lease import POLL_SECONDS, Lease, Watch, try_to_take
from llmtrain.system.leaving import is_launched, launch_name, launched_rank
from llmtrain.system.paths import local_path

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


@contextlib.contextmanager
def write_errors_named(place: object, fix: str = FREE_CACHE) -> Iterator[None]:
    """Turns any error of writing there into a ValueError: `disk_full`, or why it cannot be written.

    A disk that is read-only, gone or broken is the user's to repair, as a full one is.
    """
    try:
        with full_disk_named(place, fix):
            yield
    except OSError as error:
        raise ValueError(
            f"{place}: cannot be written ({error.strerror or one_line(error)}): look at its disk, then start again"
        ) from None


def one_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its class if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def error_and_place(error: BaseException) -> str:
    """An error of code that is not ours in one line, with the line of code that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(error)} ({frame.filename}:{frame.lineno})"


def cache_root(asked: str | None = None) -> Path:
    """The folder of what runs share: `asked`, else `$LLMTRAIN_CACHE`, else `~/.cache/llmtrain`."""
    return local_path(asked or os.environ.get("LLMTRAIN_CACHE") or "~/.cache/llmtrain")


def read_text(path: Path) -> str:
    """The text of a file. Raises OSError as `require_file` does."""
    require_file(path)
    return path.read_text(encoding="utf-8")


def require_file(path: Path) -> None:
    """Raise OSError for a device, which may never end, and for a pipe that none may write to.

    One that a shell has opened for this process is read: `llmtrain sft <(make_config)`. A folder is refused when it is
    opened.
    """
    mode = path.stat().st_mode
    is_opened = stat.S_ISFIFO(mode) and str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/"))
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or is_opened):
        raise OSError(errno.EINVAL, "it is not a file", str(path))


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

    Raises ValueError, with the `fix`, if the disk is full, and if it cannot be written for another reason.
    """
    partial = path.with_name(f"{path.name}.partial")
    with write_errors_named(path, fix):
        try:
            with partial.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def append_text(path: Path, text: str, fix: str = FREE_CACHE) -> None:
    """Append to a file. Raises ValueError as `write_whole` does.

    A text may hold half of a surrogate pair, which JSON can escape and UTF-8 cannot hold.
    """
    with write_errors_named(path, fix), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def cut_torn_line(path: Path) -> None:
    """Cut what a kill may have left of the last line of a file of lines, so that another can be appended."""
    if path.exists() and (lines := path.read_bytes()) and not lines.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(lines.rfind(b"\n") + 1)


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
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error.strerror}); set {key} to another") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{folder}: {_holder(file)} builds this; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: the lease alone excludes others
        lease = _waited_for(folder, report, key)
        _sign(file, f"{launched_rank()} {launch_name()}" if is_launched() else "")
        try:
            yield
        finally:
            _sign(file, "")
            lease.release()


def _sign(file: TextIO, holder: str) -> None:
    """Leave in a lock's file who holds it, for the words of others only."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(holder)
        file.flush()


def _holder(file: TextIO) -> str:
    """Who holds a lock: `rank 1 of this launch`, or another process."""
    time.sleep(POLL_SECONDS)  # until one that has it just now has signed
    file.seek(0)
    rank, _, launch = file.read().partition(" ")
    return f"rank {rank} of this launch" if launch and launch == launch_name() else "another process"


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
