"""How a launch ended: its exit code, and the one line that says why."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from llmtrain.system.exit_codes import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SAVED,
    EXIT_USER_ERROR,
    code_of_signals,
    signal_name,
)

OWN_CODES = (EXIT_USER_ERROR, EXIT_SAVED, EXIT_INTERRUPTED)
TORCHRUN_KILLS_AFTER_SECONDS = 30
"""After one process has failed, torchrun gives the others this time to end on SIGTERM, then kills them."""


@dataclass(frozen=True)
class Left:
    """What a process wrote before it failed."""

    rank: int
    message: str
    written_ns: int
    is_cause: bool = True  # False: it ended since another rank did, which the message names
    local_rank: int = 0


def code_of_outcomes(folder: Path) -> int:
    """The exit code of a launch whose processes all ended with 0."""
    codes = {int(path.read_text(encoding="utf-8")) for path in folder.iterdir()}
    return next((code for code in (EXIT_INTERRUPTED, EXIT_SAVED) if code in codes), 0)


def code_of_failures(failures: Mapping[int, ProcessFailure], received: Sequence[signal.Signals]) -> int:
    """The exit code of a launch by those of the processes that torchrun found failed."""
    codes = {failure.exitcode for failure in failures.values()}
    if any(-code in received or (code < 0 and signal.SIGHUP in received) for code in codes):
        return code_of_signals(received)  # before they could handle signals: there was nothing to save yet
    return next((code for code in OWN_CODES if code in codes), EXIT_FAILED)


def what_was_left(logs: Path) -> list[Left]:
    """What the processes of this node wrote before they failed; `logs`: torchrun's folder."""
    found = []
    for path in logs.glob("*/attempt_*/*/error.json"):
        message = json.loads(path.read_text(encoding="utf-8"))["message"]
        info, written = message["extraInfo"], path.stat().st_mtime_ns
        found.append(Left(int(info["rank"]), message["message"], written, info["is_cause"], int(path.parent.name)))
    return found


def first_failure(failures: Mapping[int, ProcessFailure], left: Sequence[Left]) -> int | Left:
    """The process that failed first: what it wrote, or the rank of one that torchrun found failed.

    A process that is killed (out of memory) writes nothing, and the others fail a moment later as they miss it.
    """
    first = min(failure.timestamp for failure in failures.values())
    killed = [
        rank
        for rank, failure in failures.items()
        if failure.exitcode == -signal.SIGKILL and failure.timestamp - first < TORCHRUN_KILLS_AFTER_SECONDS / 2
    ]
    if killed:
        return min(killed)
    if left:
        return min(left, key=lambda each: (not each.is_cause, each.written_ns))
    return min(failures, key=lambda rank: (failures[rank].timestamp, rank))


def reason(failures: Mapping[int, ProcessFailure], left: Sequence[Left], logs: Path) -> str:
    """The last line of a launch that failed; `logs`: torchrun's folder."""
    first = first_failure(failures, left)
    if isinstance(first, Left):
        if not first.is_cause:
            return first.message  # names the rank of another node
        if first.message.startswith("error: "):
            is_of_all = any(each.rank == 0 and each.message == first.message for each in left)
            return first.message if first.rank == 0 or is_of_all else f"[rank {first.rank}] {first.message}"
        return f"error: {_who(first.rank)} failed first: {first.message}{_log(logs, first.local_rank)}"
    failure = failures[first]
    log = _log(logs, failure.local_rank)
    if failure.exitcode < 0:
        hint = ": the node may be out of memory" if failure.exitcode == -signal.SIGKILL else ""
        return f"error: {_who(first)} was ended by {signal_name(-failure.exitcode)}{hint}{log}"
    return f"error: {_who(first)} failed first, with exit code {failure.exitcode}: its last lines say why{log}"


def _who(rank: int) -> str:
    return f"rank {rank} on {socket.gethostname()}"


def _log(logs: Path, local_rank: int) -> str:
    """Where a process's output is, if it went to a file."""
    log = next(logs.glob(f"*/attempt_*/{local_rank}/stderr.log"), None)
    return "" if log is None else f" ({log})"
