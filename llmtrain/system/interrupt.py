"""Signals as they arrive, while Python computes in C; a second Ctrl-C (SIGINT) ends the process at once.

Python runs a signal's handler between two bytecodes of the main thread, so one that arrives in a backward pass waits
for its end. The thread here does not wait: it reads a pipe that the handler in C writes to (`signal.set_wakeup_fd`).
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from llmtrain.system.exit_codes import EXIT_INTERRUPTED
from llmtrain.system.leaving import launched_rank, leave_from_thread
from llmtrain.system.visible import visible

ECHO_SECONDS = 0.5
"""A second one within this time is the first again: a terminal sends it to a launcher, which may pass it on."""

SHOW_CURSOR = b"\x1b[?25h\n"  # a progress bar hides it

Seen = Callable[[int], None]
"""Called on the thread with each signal that arrives."""


@contextmanager
def watched_signals(seen: Seen = lambda _: None) -> Iterator[None]:
    """Within it, `seen` gets each signal that has a handler in Python, at once, and a second SIGINT ends this process.

    That is safe wherever it comes: everything written is safe from kills.
    """
    with signals_on_thread(lambda reading: _watch(reading, seen)):
        yield


@contextmanager
def signals_on_thread(watch: Callable[[int], None]) -> Iterator[None]:
    """Within it, a thread calls `watch` with a pipe of the signals that have a handler, until that is closed."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, args=(reading,), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # ends the thread
        thread.join()
        os.close(reading)


def note(line: str) -> None:
    """Write a line to stderr from any thread, past what Python buffers; once for all processes of a launch."""
    if launched_rank() == 0:
        with suppress(OSError):  # nobody reads it any more
            os.write(2, f"{visible(line)}\n".encode())


def drop_lost_output() -> None:
    """From here on print to nowhere if whoever read it is gone, as with a terminal that was closed.

    An error of printing would else end the run before it has saved.
    """
    watch = select.poll()
    for descriptor in (1, 2):
        watch.register(descriptor, 0)
    for descriptor, events in watch.poll(0):
        if events & (select.POLLERR | select.POLLHUP):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def _watch(reading: int, seen: Seen) -> None:
    first: float | None = None
    while numbers := os.read(reading, 64):
        for number in numbers:
            if number != signal.SIGINT:
                seen(number)
            elif first is None:
                first = time.monotonic()
                seen(number)
            elif time.monotonic() - first > ECHO_SECONDS:
                if os.isatty(2):
                    os.write(2, SHOW_CURSOR)
                leave_from_thread(EXIT_INTERRUPTED)


def _forget() -> None:
    """In a forked child: its signals are not its parent's."""
    signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
