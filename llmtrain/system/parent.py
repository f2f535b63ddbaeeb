"""A process that ends with the one that started it: SIGKILL, or a lack of memory, gives that one no time to end others.

On Linux the kernel then sends SIGTERM, on which a run saves and ends; elsewhere the run trains to its end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

LAUNCHER = "LLMTRAIN_LAUNCHER"  # process id of `llmtrain launch`, for those that it starts
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent: int) -> bool:
    """Get SIGTERM when this process's parent ends; False if `parent` is not it, perhaps as it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return os.getppid() == parent


def end_with_launcher() -> None:
    """The same for a process of `llmtrain launch`; nothing in others."""
    launcher = os.environ.pop(LAUNCHER, None)  # what this process starts is not the launcher's
    if launcher is not None and not end_with(int(launcher)):
        os.kill(os.getpid(), signal.SIGTERM)
