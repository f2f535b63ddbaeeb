"""A run's folder for one launch: held by a lease, or refused by naming who holds it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llmtrain.system.files import disk_full, is_disk_full
from llmtrain.system.lease import POLL_SECONDS, Lease, Watch, contents, try_to_take


@contextlib.contextmanager
def sole_writer(folder: Path, what: str, report: Callable[[str], None], watch: Watch | None = None) -> Iterator[Lease]:
    """Hold a folder, which is made if it is missing, or raise ValueError naming who holds it.

    A holder on another machine is watched until its heartbeat changes, or has not for a minute. `what`: names the
    folder in messages.
    """
    watch, folder = watch or Watch(), folder.absolute()
    is_new = not folder.exists()
    is_watching = False
    while isinstance(lease := _tried(folder, watch, what, report), str):
        if "unknown" not in [watch.verdict(number, content) for number, content in contents(folder)]:
            raise ValueError(f"{what} is in use by {lease}: wait for it, stop it, or choose another folder")
        if not is_watching:
            report(f"{what}: held by {lease}; watching for up to {watch.seconds:.0f} s whether it still runs")
            is_watching = True
        time.sleep(POLL_SECONDS)
    try:
        yield lease
    finally:
        lease.release()
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # what was refused leaves nothing


def _tried(folder: Path, watch: Watch, what: str, report: Callable[[str], None]) -> Lease | str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return try_to_take(folder, watch, report)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(what, "free some space or choose another folder") from None
        raise ValueError(f"{what}: cannot be written ({error.strerror}); choose another folder") from None
