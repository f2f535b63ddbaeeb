"""The signals that ask many runs to stop: noted here, passed on to the one that runs, which saves."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llmtrain.system.exit_codes import code_of_signals
from llmtrain.system.stop_signal import SIGNALS


class StopRequests:
    """The signals to stop so far."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def any(self) -> bool:
        """Whether there was one."""
        return bool(self.received)

    @property
    def exit_code(self) -> int:
        """What a command ends with that they have stopped."""
        return code_of_signals(self.received)


@contextmanager
def stop_signals() -> Iterator[StopRequests]:
    """Inside, the first Ctrl-C, SIGTERM or SIGUSR1 is noted; a second Ctrl-C ends the process at once."""
    requests = StopRequests()

    def note(number: int, _frame: FrameType | None) -> None:
        if requests.any() and number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.received.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
