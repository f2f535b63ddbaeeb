"""A program that builds stores by several processes: `python shared_builds.py FOLDER CASES.json`.

Each case is [kind, data, workers, kill]: so many processes make shards together, all from the first one on; one of them
is killed where `kill` says, as [place, number of the shard, before or after]; then this process builds what is left.
What is printed is JSON: of each case the lines that it reported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_kinds import SPECS

from llmtrain.data.store import kinds, shards, text
from llmtrain.data.store.build import find_or_build, help_build
from llmtrain.data.store.documents import Documents


def main() -> None:
    folder, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    shards.SHARD_BYTES, kinds.BATCH_ROWS = 200, 4
    text.batch_chars = lambda: 100  # type: ignore[assignment]
    lines = []
    for number, case in enumerate(cases):
        (folder / str(number)).mkdir()
        lines.append(run(folder / str(number), *case))
    print(json.dumps(lines))


def run(started: Path, kind: str, data: dict[str, Any], num_workers: int, kill: list[Any] | None) -> list[str]:
    """Build the stores of one case; what this process reports."""
    children, specs = [], SPECS[kind](data, str)
    for number in range(num_workers):
        if not (child := os.fork()):
            if kill is not None and number == 0:
                at_save(killed(*kill))
            at_save(wait_for_all(started, num_workers))
            try:
                help_build(specs, lambda line: None)
            finally:
                os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert [os.WIFSIGNALED(status) for status in statuses] == [kill is not None] + [False] * (num_workers - 1)
    lines: list[str] = []
    find_or_build(specs, lines.append)
    return lines


Save = Callable[..., None]


def at_save(changed: Callable[[Save], Save]) -> None:
    Documents.save = changed(Documents.save)  # type: ignore[method-assign]


def wait_for_all(started: Path, num_workers: int) -> Callable[[Save], Save]:
    """Save the first shard once every worker has one."""

    def changed(save: Save) -> Save:
        def run(*arguments: Any) -> None:
            (started / str(os.getpid())).touch()
            while len(os.listdir(started)) < num_workers:
                time.sleep(0.01)
            save(*arguments)

        return run

    return changed


def killed(number: int, when: str) -> Callable[[Save], Save]:
    """Kill this process at a shard."""

    def changed(save: Save) -> Save:
        calls = []

        def run(*arguments: Any) -> None:
            calls.append(None)
            if len(calls) == number and when == "before":
                os.kill(os.getpid(), 9)
            save(*arguments)
            if len(calls) == number:
                os.kill(os.getpid(), 9)

        return run

    return changed


if __name__ == "__main__":
    main()
