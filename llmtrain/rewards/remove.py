"""Removal of a folder that hostile code has filled: however deep it is, without recursion, long paths or failure."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def remove_folder(folder: Path) -> bool:
    """Remove a folder with all that is in it; whether that succeeded.

    Subfolders move up to the top, one level at a time, so that no path is longer than two names: a/b/c/d becomes
    a and 0, then 0 and 1, and so on.
    """
    number = 0
    with suppress(OSError):
        while entries := list(os.scandir(folder)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, stat.S_IRWXU)
                for inner in list(os.scandir(entry.path)):
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner.path, stat.S_IRWXU)  # a folder that is not writable cannot move
                        number += 1
                        os.rename(inner.path, folder / f".removed-{number}")
                    else:
                        os.unlink(inner.path)
                os.rmdir(entry.path)
        os.rmdir(folder)
        return True
    return False
