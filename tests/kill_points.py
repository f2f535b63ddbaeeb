"""Ends a process before a chosen one of its operations on files, as `kill -9` might."""

from __future__ import annotations

import os
import sys
from typing import Any

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.chmod", "os.truncate", "os.remove", "os.rmdir", "os.scandir"}
KILLED = 9


def kill_before(number: int) -> None:
    """End this process before its operation `number` on files, counted from 1."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in OPERATIONS:
            count += 1
            if count == number:
                os._exit(KILLED)

    sys.addaudithook(watch)
