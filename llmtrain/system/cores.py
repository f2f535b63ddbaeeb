"""The processors of this machine that this process may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

ENCODING_THREADS = "RAYON_NUM_THREADS"
"""The variable that the `tokenizers` library reads when it first encodes a batch."""


def usable_cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def share_of_cores(environment: Mapping[str, str]) -> int:
    """This process's share of them, among the processes of a launch on this machine; at least one."""
    return max(1, usable_cores() // int(environment.get("LOCAL_WORLD_SIZE", "1")))


def encoding_threads(environment: Mapping[str, str]) -> int:
    """The threads on which the `tokenizers` library encodes in this process."""
    return int(environment.get(ENCODING_THREADS) or usable_cores())
