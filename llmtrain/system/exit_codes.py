"""What a process ends with; a script or a scheduler decides by it what to do next."""

from __future__ import annotations

import signal
from collections.abc import Collection

EXIT_FAILED = 1
"""An error of ours or of a library, with its traceback."""
EXIT_USER_ERROR = 2
"""What the user can fix, said in one line."""
EXIT_SAVED = 75
"""A signal ended it, and everything is saved: the same command goes on from there. EX_TEMPFAIL of sysexits.h."""
EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Ctrl-C ended it, as a shell gives; also where everything is saved, so that a script's loop ends too."""
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


def code_of_signals(received: Collection[int]) -> int:
    """What a command ends with that these signals ended, with nothing to save or everything saved."""
    return EXIT_INTERRUPTED if signal.SIGINT in received else EXIT_SAVED


def signal_name(number: int) -> str:
    """SIGKILL for 9; "signal 40" for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
