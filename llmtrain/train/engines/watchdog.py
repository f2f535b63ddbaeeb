"""Names the rank that is stuck: each rank counts the collectives it reached, and the others can read the count.

A collective that waits for a stuck rank does not know which it is, and on GPUs it cannot even raise. So a thread
of each rank publishes that rank's count in the process group's store. If the count has not changed for the timeout
and another rank's is lower, the thread reports which rank is missing and ends the process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Protocol

LONGEST_PERIOD_SECONDS = 5.0


class Store(Protocol):
    """What is needed of torch's key-value store."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...


class Watchdog:
    """Watches that every rank comes to every collective within `timeout_seconds`."""

    def __init__(self, store: Store, rank: int, world_size: int, timeout_seconds: float) -> None:
        self._store, self._rank, self._world_size, self._timeout = store, rank, world_size, timeout_seconds
        self._count, self._place, self._since = 0, "start", time.monotonic()
        self._stopped = threading.Event()
        self._publish()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def arrive(self, place: str) -> None:
        """Note that this rank has come to a collective; cheap enough for every microbatch."""
        self._count, self._place, self._since = self._count + 1, place, time.monotonic()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(min(LONGEST_PERIOD_SECONDS, self._timeout / 8)):
            self._publish()
            waited = time.monotonic() - self._since
            if waited > self._timeout and (late := self._late()):
                if self._rank == min(set(range(self._world_size)) - set(late)):
                    print(self._diagnosis(late, waited), file=sys.stderr, flush=True)
                os._exit(1)

    def _publish(self) -> None:
        self._store.set(f"llmtrain/arrived/{self._rank}", f"{self._count} {self._place}")

    def _late(self) -> dict[int, str]:
        """The ranks with a lower count than this one, with the last place each came to."""
        late = {}
        for rank in range(self._world_size):
            count, place = self._store.get(f"llmtrain/arrived/{rank}").decode().split(" ", 1)
            if int(count) < self._count:
                late[rank] = place
        return late

    def _diagnosis(self, late: dict[int, str], waited: float) -> str:
        stuck = ", ".join(f"rank {rank} (last seen in {place})" for rank, place in late.items())
        return (
            f"error: waited {waited:.0f} s in {self._place} for {stuck}, which did not arrive: look at its host and "
            "log, or raise run.timeout_minutes if it was only slow"
        )
