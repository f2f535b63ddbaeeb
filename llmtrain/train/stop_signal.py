"""A signal that asks the run to stop: noted here, acted on by the loop."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """SIGTERM or SIGUSR1 sets `requested`; the loop sees it at the next step, saves and returns.

    More of them change nothing: launchers and schedulers may each send their own.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
