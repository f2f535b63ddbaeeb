"""Signals to a launcher, passed on to the processes of its node, which save.

torchrun itself would end its wait for the processes with an exception, kill them after 30 s, and leave the other nodes
without the store that node 0 keeps. Here it goes on waiting, and the processes end by themselves.

A thread does it: the main thread may be in C, waiting for another node. Each process, also one that starts later, gets
SIGTERM and SIGUSR1 once, and SIGINT as often as it came: the second Ctrl-C ends a process at once.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from llmtrain.system.interrupt import signals_on_thread

PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,  # the terminal is gone: save
}
"""What a launcher gets -> what the processes get."""
POLL_SECONDS = 0.1


class PassedOn:
    """The signals of a launch. `leave`: ends this process at once, where there is no other process to wait for."""

    def __init__(self, save_seconds: float, are_started: Callable[[], bool], leave: Callable[[], None]) -> None:
        self.received: list[signal.Signals] = []
        self.killed = False  # whether the processes did not end in time
        self._save_seconds, self._are_started, self._leave = save_seconds, are_started, leave
        self._num_sent: dict[int, int] = {}

    def watch(self, reading: int) -> None:
        """Pass on what comes through a pipe, until it is closed."""
        deadline: float | None = None
        while True:
            is_ready = select.select([reading], [], [], None if deadline is None else POLL_SECONDS)[0]
            if is_ready:
                numbers = os.read(reading, 64)
                if not numbers:
                    return
                self._receive(numbers)
            if not self.received:
                continue
            if deadline is None:
                deadline = time.monotonic() + self._save_seconds
                if not self._are_started():
                    self._leave()
            self._send()
            if time.monotonic() > deadline:
                self._kill()

    def _receive(self, numbers: bytes) -> None:
        for number in numbers:
            if number in PASSED_ON and (number == signal.SIGINT or number not in self.received):
                self.received.append(signal.Signals(number))

    def _send(self) -> None:
        for process in _processes():
            num_sent = self._num_sent.get(process.pid, 0)
            with suppress(psutil.NoSuchProcess):
                for number in self.received[num_sent:]:
                    process.send_signal(PASSED_ON[number])
            self._num_sent[process.pid] = len(self.received)

    def _kill(self) -> None:
        processes = _processes()
        if not processes and not self.killed:
            self._leave()  # they have ended; another node has not
        self.killed = True
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def passing_signals_on(passed_on: PassedOn) -> Iterator[None]:
    """Within it, signals to this process are passed on.

    They do nothing else here, also after it, when the exit code is known.
    """
    heard = [number for number in PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]  # nohup, `command &`
    with signals_on_thread(passed_on.watch):
        for number in heard:
            signal.signal(number, lambda number, frame: None)
        yield


def _processes() -> list[psutil.Process]:
    """The processes that torchrun has started: each leads a session."""
    children = []
    for child in psutil.Process().children():
        with suppress(ProcessLookupError):
            if os.getsid(child.pid) == child.pid:
                children.append(child)
    return children
