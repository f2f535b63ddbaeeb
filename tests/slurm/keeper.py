"""Starts commands and holds them until its stdin closes; then ends them and everything that came from them.

    python keeper.py COMMANDS.json FOLDER

What a command leaves as an orphan (slurmd starts its job steps so) becomes a child of this process and ends with it.
stdin closes when the test ends in whatever way, `kill -9` included. The folder is removed last.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_SECONDS = 0.2


def main() -> None:
    """Start the commands, wait, end all, remove the folder."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    for argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    print("started", flush=True)
    while not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        reap()
    while ours := list(descendants(os.getpid())):
        for process in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(POLL_SECONDS / 10)
        reap()
    shutil.rmtree(sys.argv[2], ignore_errors=True)


def reap() -> None:
    """Take note of every child that has ended, so that no zombie stays."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def descendants(process: int) -> Iterator[int]:
    """The children of a process, and theirs."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text(encoding="ascii").split()):
                yield child
                yield from descendants(child)


if __name__ == "__main__":
    main()
