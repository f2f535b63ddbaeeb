"""How a process ends at once, and what it leaves for who started it.

torchrun, and so `accelerate launch`, calls every exit status but 0 a failure. So a process of a launch that a signal
ended, with everything saved, exits with 0, and leaves the status that it would have had alone in a file:

    $LLMTRAIN_OUTCOMES/3      of rank 3, holds 75

`llmtrain launch` names the folder, and ends with what it finds there. Why a process failed is in torchrun's own file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from llmtrain.system.exit_codes import EXIT_INTERRUPTED, EXIT_SAVED

OUTCOMES = "LLMTRAIN_OUTCOMES"


def is_launched() -> bool:
    """Whether a launcher started this process, as one of several perhaps."""
    return "WORLD_SIZE" in os.environ


def launched_rank() -> int:
    """This process's rank in its launch; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def launch_name() -> str | None:
    """What all processes of this launch, and no others, have in common; None without one."""
    if not is_launched():
        return None
    return f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"


def leave(status: int) -> NoReturn:
    """End this process at once, from its main thread: no process group is closed, no exit handler runs."""
    sys.stdout.flush()
    sys.stderr.flush()
    leave_from_thread(status)


def leave_from_thread(status: int) -> NoReturn:
    """The same from any thread: what Python buffers is not written, as the main thread may hold its lock."""
    os._exit(outcome(status))


def outcome(status: int) -> int:
    """The status that this process ends with, once its own has been left for the launcher."""
    if not is_launched() or status not in (EXIT_SAVED, EXIT_INTERRUPTED):
        return status
    folder = os.environ.get(OUTCOMES)
    if folder:
        _write_at_once(Path(folder, str(launched_rank())), f"{status}\n")
    return 0


def report_to_launcher(message: str, *, is_cause: bool = True) -> bool:
    """Leave the reason of a failure where torchrun looks for it; whether the launcher will print it alone, as its last.

    torchrun's own report has lines on time, host, rank and exit code, then `traceback : error: ...`; without this file
    the last of them says how to get a traceback. `llmtrain launch` prints the message of the first rank that failed.
    `is_cause`: no other rank is known that failed before.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None or not is_launched():
        return False
    # In whole seconds; the first is taken for the cause.
    timestamp = int(time.time()) + (-1 if is_cause else 1)
    info = {"timestamp": timestamp, "rank": launched_rank(), "is_cause": is_cause}
    is_written = _write_at_once(Path(path), json.dumps({"message": {"message": message, "extraInfo": info}}))
    return is_written and OUTCOMES in os.environ


def has_failed_neighbor() -> bool:
    """Whether another process of this node has left the reason of a failure, for which torchrun ends this one."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")  # .../LOCAL_RANK/error.json
    return path is not None and any(str(file) != path for file in Path(path).parent.parent.glob("*/error.json"))


def _write_at_once(path: Path, text: str) -> bool:
    """Write a file that whoever waits for this process finds whole or not at all; False if it cannot be written.

    The launcher may be gone, and its folder with it.
    """
    partial = Path(f"{path.parent}.{path.name}.{os.getpid()}")  # beside the folder, whose files are all read
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        return False
    return True
