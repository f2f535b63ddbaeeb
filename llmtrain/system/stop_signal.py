"""The signals that ask a command to stop, from its start to its end: SIGTERM, SIGUSR1 and Ctrl-C.

What they do depends on what the command is doing:

    with StopSignal() as stop:  # nothing to save yet: a signal raises Stopped or KeyboardInterrupt in the main thread
    stop.note()                 # a signal sets `requested`: the loop sees it at the next step, saves and returns
    stop.note_all_but_ctrl_c()  # the model is being written, which is short
    stop.end()                  # as at the start: the next stage

More signals than one change nothing: launchers and schedulers may each send their own. A second Ctrl-C never gets here.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from llmtrain.system.ending import LaunchEnded
from llmtrain.system.exit_codes import code_of_signals
from llmtrain.system.interrupt import drop_lost_output, note, watched_signals
from llmtrain.system.leaving import leave_from_thread

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
GRACE_SECONDS = 5.0
"""Where the main thread waits in C, for another rank above all, no exception comes through: after this time a thread
ends the process."""


class Stopped(BaseException):
    """A signal ended the command; the text says where, if more is known than that nothing was trained."""


class StopSignal:
    """Which signal has asked this command to stop. A context manager: what was there before comes back."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._noted = frozenset[int]()  # the signals that do not end the command just now
        self._is_ending = self._is_deferred = False
        self._closed = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> StopSignal:
        with ExitStack() as stack:
            for number in SIGNALS:
                if not _is_ignored(number):
                    stack.callback(signal.signal, number, signal.signal(number, self._handle))
            stack.enter_context(watched_signals(self._seen))
            stack.callback(self._closed.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._stack.close()
        if self._is_ending and isinstance(error, Exception) and not isinstance(error, LaunchEnded):
            # An import that the signal broke into has caught the exception, and failed in its own way.
            raise (KeyboardInterrupt if self.requested == "SIGINT" else Stopped) from None

    def note(self, numbers: Iterable[int] = SIGNALS) -> None:
        """From here on these signals are only noted, and the others end the command."""
        self._noted = frozenset(numbers)

    def note_all_but_ctrl_c(self) -> None:
        """From here on only a Ctrl-C ends the command."""
        self.note({signal.SIGTERM, signal.SIGUSR1})

    def end(self) -> None:
        """From here on a signal ends the command, also one that was noted."""
        self.note(())
        if self.requested is not None:
            self._end(signal.Signals[self.requested])

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        drop_lost_output()
        self.requested = self.requested or signal.Signals(number).name
        if number not in self._noted and not self._is_deferred:
            self._end(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal waits: an import in C that is broken off prints where it was. If it is long, it ends."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.requested is not None:
            self._end(signal.Signals[self.requested])

    def _end(self, number: int) -> None:
        if self._is_ending:
            return  # it would break into what the first one has to clear up
        self._is_ending = True
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped

    def _seen(self, number: int) -> None:
        """On the watching thread, before `_handle`, which may wait for what is computed in C."""
        if number not in SIGNALS:
            return  # a library's, such as the SIGALRM of a reward function that limits its time
        if number not in self._noted:
            threading.Thread(target=self._leave_late, args=(number,), name="backstop", daemon=True).start()
        elif number == signal.SIGINT and not self._is_ending:  # `_handle` may have come first
            note(
                "\nCtrl-C: ending this step, saving, then stopping; once more ends at once, and the last checkpoint is "
                "kept"
            )

    def _leave_late(self, number: int) -> None:
        """End the process if its main thread has not come to it."""
        if self._closed.wait(GRACE_SECONDS) or number in self._noted:
            return
        note(f"\n{signal.Signals(number).name}: stopped before training; start the same command again to continue")
        leave_from_thread(code_of_signals({number}))


def _is_ignored(number: signal.Signals) -> bool:
    """Whether a shell has started this process in the background of a script, where Ctrl-C is not meant for it."""
    return number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN
