"""Ends a launch when one of its ranks ends, and names that rank; also one that hangs, with its stack.

A collective that waits for a lost or stuck rank does not know which it is, and on GPUs it cannot even raise. So a
thread of each rank has a connection with rank 0 (`connections`), which decides:

    a rank fails        it sends its reason, and all others end once it has left
    a rank is killed    its connection ends without a word
    a rank hangs        it came to fewer collectives than one that has waited for the timeout; it is asked for its stack
    rank 0 is killed    the others notice the end of their connections

The main thread of a rank usually learns of it by a collective that fails, and leaves in order; if it does not come to
that, the thread ends the process.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

from llmtrain.system.ending import Ending, LaunchEnded
from llmtrain.system.exit_codes import EXIT_FAILED
from llmtrain.system.leaving import leave_from_thread, report_to_launcher
from llmtrain.system.visible import visible_line
from llmtrain.train.engines.connections import Connections, Event, Store

LONGEST_PERIOD_SECONDS = 1.0
ANSWER_SECONDS = 5.0
"""A hung rank has so long to send its stack, and a failed one to leave before the others do."""
UNWIND_SECONDS = 3.0
"""The main thread has so long to leave by itself."""
SILENCE_SECONDS = 30.0  # of rank 0, which says every second that it is there
STACK_FRAMES = 5
NO_ANSWER = "which does not answer: it was stopped, or a library holds Python's lock"
KILLED = "its process was killed, by hand or for want of memory, or its node was lost"


@dataclass
class Seen:
    """How far a rank has come, as it last said."""

    host: str = ""
    count: int = 0  # of collectives it came to
    place: str = "start"  # the last of them
    idle: float = 0.0  # seconds since it came there, or did something that takes long
    at: float = field(default_factory=time.monotonic)

    @property
    def idle_now(self) -> float:
        return self.idle + time.monotonic() - self.at

    def message(self) -> tuple[str, int, str, float]:
        """What is sent of it: clocks of machines differ."""
        return self.host, self.count, self.place, self.idle


class Watchdog:
    """One rank's thread. What it says is final: the process ends."""

    def __init__(self, store: Store, rank: int, timeout_seconds: float) -> None:
        """Raises OSError if rank 0 cannot be reached."""
        self._rank, self._timeout = rank, timeout_seconds
        self._host = socket.gethostname()
        self._count, self._place, self._since = 0, "start", time.monotonic()
        self._connections = Connections(store, rank, os.environ)
        self._seen: dict[int, Seen] = {}  # on rank 0: of all ranks
        self._stacks: dict[int, str] = {}  # of ranks that were asked
        self._asked: float | None = None  # when
        self._announced: tuple[Ending, float] | None = None  # by a rank that is about to leave, and when
        self._ending: Ending | None = None
        self._ended = threading.Event()  # `_ending` is set
        self._is_failing = False  # this rank ends by its own error, and prints that
        self._done: set[int] = set()  # ranks that have nothing more to do
        self._may_leave = threading.Event()
        self._stopped = threading.Event()
        self._heard = time.monotonic()  # from rank 0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def arrive(self, place: str) -> None:
        """Note that this rank has come to a collective; cheap enough for every microbatch."""
        self._count, self._place, self._since = self._count + 1, place, time.monotonic()

    def progress(self) -> None:
        """Note that this rank does something that takes long, and that others wait for rightly."""
        self._since = time.monotonic()

    def host_of(self, rank: int) -> str:
        """The host of a rank; on rank 0."""
        return self._seen[rank].host if rank in self._seen else "unknown host"

    def announce(self, ending: Ending) -> None:
        """Let all others end with this rank, which is about to leave."""
        self._is_failing = True
        if self._rank == 0:
            self._announce(ending)
        self._connections.send_all({"ending": asdict(ending)})

    def ending(self, seconds: float) -> Ending | None:
        """The end of another rank, if one is known within a time."""
        return self._ending if self._ended.wait(seconds) else None

    def leave_together(self) -> None:
        """Wait until every rank has come here: rank 0 may still write, for as long as it takes.

        Raises LaunchEnded if another rank is lost meanwhile.
        """
        if self._rank == 0:
            self._connections.send_all({"done": True})
        else:
            self._connections.send(0, {"done": True})
        self._done.add(self._rank)
        while not self._may_leave.wait(0.05):
            if self._ended.is_set() and self._ending is not None:
                raise LaunchEnded(self._ending)
            if not self._thread.is_alive():
                raise RuntimeError("the watchdog's thread has ended, with the error above")
        self.stop()

    def stop(self) -> None:
        """End the thread, and the connections."""
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._connections.close()

    def _watch(self) -> None:
        period = min(LONGEST_PERIOD_SECONDS, self._timeout / 8)
        beat = time.monotonic()
        while not self._stopped.is_set():
            for event in self._connections.receive(min(period, 0.1) if self._done or self._announced else period):
                self._take(event)
            if time.monotonic() - beat > period:
                beat = time.monotonic()
                self._beat()
            if self._rank == 0:
                self._judge()
                if {0, *self._connections.ranks} <= self._done:
                    self._may_leave.set()
            if self._ending is not None:
                self._end(self._ending)

    def _beat(self) -> None:
        """Say how far this rank has come, or, from rank 0, that it is there."""
        # If a library holds Python's lock, this thread waits too: a thread in C then prints where.
        faulthandler.dump_traceback_later(self._timeout + ANSWER_SECONDS, exit=False)
        if self._rank == 0:
            self._seen[0] = self._own()
            self._connections.send_all({"alive": True})
            return
        self._connections.send(0, {"seen": self._own().message()})
        waited = time.monotonic() - self._since
        if waited > self._timeout and time.monotonic() - self._heard > min(SILENCE_SECONDS, self._timeout):
            reason = f"waited {waited:.0f} s in {self._place} for it, {NO_ANSWER}"
            self._decide(Ending("hung", 0, os.environ.get("MASTER_ADDR", ""), reason, EXIT_FAILED))

    def _own(self) -> Seen:
        return Seen(self._host, self._count, self._place, time.monotonic() - self._since)

    def _take(self, event: Event) -> None:
        rank, message = event
        self._heard = time.monotonic()
        if message is None:
            self._gone(rank)
        elif "seen" in message:
            self._seen[rank] = Seen(*message["seen"])
        elif "ending" in message:
            self._announce(Ending(**message["ending"]))
        elif "final" in message:
            self._decide(Ending(**message["final"]))
        elif "ask" in message:
            self._connections.send(0, {"stack": self._stack()})
        elif "stack" in message:
            self._stacks[rank] = message["stack"]
        elif "done" in message:
            self._done.add(rank)
            if rank == 0:
                self._may_leave.set()

    def _gone(self, rank: int) -> None:
        """A connection ended: of a rank that has nothing more to do, has said why it leaves, or was killed."""
        if rank in self._done:
            self._done.discard(rank)
        elif self._announced is not None:
            self._decide(self._announced[0])
        else:
            host = self._seen[rank].host if rank in self._seen else os.environ.get("MASTER_ADDR", "")
            self._decide(Ending("lost", rank, host, KILLED, EXIT_FAILED))

    def _announce(self, ending: Ending) -> None:
        if self._announced is None:
            self._announced = ending, time.monotonic()

    def _decide(self, ending: Ending) -> None:
        """This is how the launch ends, the first time; said before the main thread learns of it, and may leave."""
        if self._ending is None:
            self._ending = ending
            if self._rank == 0:
                self._connections.send_all({"final": asdict(ending)})
            if not self._is_failing and ending.is_printed_by(self._rank, os.environ):
                with suppress(OSError):  # stderr may be gone
                    os.write(2, f"{visible_line(ending.line)}\n".encode())
            self._ended.set()

    def _judge(self) -> None:
        """On rank 0, which has all that is known."""
        if self._announced is not None and time.monotonic() - self._announced[1] > ANSWER_SECONDS:
            self._decide(self._announced[0])
        self._seen[0] = self._own()
        late, waited, place = late_ranks(self._seen, self._timeout)
        if not late:
            self._asked = None
            return
        if self._asked is None:
            self._asked = time.monotonic()
            self._stacks = {0: self._stack()} if 0 in late else {}
            for rank in late:
                self._connections.send(rank, {"ask": "stack"})
        if all(rank in self._stacks for rank in late) or time.monotonic() - self._asked > ANSWER_SECONDS:
            first, *others = late
            also = f", like {len(others)} more, rank {others[0]} among them" if others else ""
            reason = (
                f"waited {waited:.0f} s in {place} for it{also}; it was last seen in {self._seen[first].place}, "
                f"{self._stacks.get(first, NO_ANSWER)}; raise run.timeout_minutes if it was only slow"
            )
            self._decide(Ending("hung", first, self._seen[first].host, reason, EXIT_FAILED))

    def _stack(self) -> str:
        """Where this rank hangs; in full, of every thread, in its own log."""
        faulthandler.dump_traceback(file=sys.stderr)
        return stack_of_main_thread()

    def _end(self, ending: Ending) -> NoReturn:
        """End this process, unless its main thread does it in time."""
        is_cause = ending.rank == self._rank
        if not (is_cause and ending.kind == "hung"):  # that one leaves first
            self._stopped.wait(2 * ANSWER_SECONDS if self._is_failing else UNWIND_SECONDS)
        if not self._is_failing and ending.kind != "interrupted":
            report_to_launcher(ending.line, is_cause=is_cause)
        leave_from_thread(ending.status)


def late_ranks(seen: dict[int, Seen], timeout_seconds: float) -> tuple[list[int], float, str]:
    """The ranks that one has waited for longer than the timeout; how long, and where."""
    waiting = max(seen.values(), key=lambda each: (each.count, each.idle_now))
    late = [rank for rank, each in sorted(seen.items()) if each.count < waiting.count]
    if waiting.idle_now <= timeout_seconds:
        return [], 0.0, ""
    return [rank for rank in late if seen[rank].idle_now > timeout_seconds], waiting.idle_now, waiting.place


def stack_of_main_thread() -> str:
    """Where the main thread is, the innermost call first: "at pause.py:7 in wait < train.py:12 in main"."""
    identity = threading.main_thread().ident
    assert identity is not None
    inner = reversed(traceback.extract_stack(sys._current_frames()[identity])[-STACK_FRAMES:])
    return "at " + " < ".join(f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in inner)
