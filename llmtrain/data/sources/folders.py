"""The files of a folder: links followed, each file once, and an account of everything that is passed over."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

HIDDEN = "hidden"
BROKEN_LINK = "broken link"
SEEN = "link to what is read already"
SPECIAL = "pipe, socket or device"


def files_of(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The files of a folder and all folders in it, in the order of their paths, and the count of the rest by reason.

    Links are followed, but none to a folder that holds it; a file that several links lead to is read once, by its own
    name if that is in the folder. Hidden files and folders are those whose name starts with a dot; a hidden folder
    counts as one. Raises ValueError, naming it, for a folder that cannot be listed.
    """
    found: dict[str, Path] = {}  # real path -> path
    passed_over: Counter[str] = Counter()
    entered: set[str] = set()
    links: list[Path] = []

    def enter(path: Path, real: str) -> None:
        waiting = [(path, real)]
        while waiting:
            path, real = waiting.pop()
            if real in entered:
                passed_over[SEEN] += 1
                continue
            entered.add(real)
            for entry in _entries(path):
                if entry.name.startswith("."):
                    passed_over[HIDDEN] += 1
                elif entry.is_symlink():
                    heapq.heappush(links, Path(entry.path))
                elif entry.is_dir():
                    waiting.append((Path(entry.path), os.path.join(real, entry.name)))
                elif not entry.is_file():
                    passed_over[SPECIAL] += 1
                elif os.path.join(real, entry.name) in found:
                    passed_over[SEEN] += 1
                else:
                    found[os.path.join(real, entry.name)] = Path(entry.path)

    enter(folder, os.path.realpath(folder))
    while links:
        link = heapq.heappop(links)
        real = os.path.realpath(link)
        if not os.path.exists(real):
            passed_over[BROKEN_LINK] += 1
        elif real in found or real in entered or _holds(real, os.path.realpath(link.parent)):
            passed_over[SEEN] += 1
        elif os.path.isdir(real):
            enter(link, real)
        elif os.path.isfile(real):
            found[real] = link
        else:
            passed_over[SPECIAL] += 1
    return sorted(found.values()), passed_over


def each_once(paths: Sequence[Path]) -> tuple[list[Path], Counter[str]]:
    """The files and nothing else of what a glob matches, in order, each under the name without a link if it has one."""
    kept: dict[str, Path] = {}
    passed_over: Counter[str] = Counter()
    for path in sorted(paths, key=lambda path: (os.path.realpath(path) != os.path.abspath(path), path)):
        real = os.path.realpath(path)
        if path.is_dir():
            passed_over["folder"] += 1
        elif not os.path.exists(real):
            passed_over[BROKEN_LINK] += 1
        elif not os.path.isfile(real):
            passed_over[SPECIAL] += 1
        elif real in kept:
            passed_over[SEEN] += 1
        else:
            kept[real] = path
    return sorted(kept.values()), passed_over


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise ValueError(f"{folder}: cannot be listed ({error.strerror}), so that its files would be missing") from None


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
