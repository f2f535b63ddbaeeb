"""Questions to a child process with a hard limit of time: what no signal or thread could stop in this one.

One child serves all questions; one that takes too long is killed with it, and the next question starts another.
"""

from __future__ import annotations

import atexit
import json
import selectors
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

START_SECONDS = 120.0
Answer = Literal["yes", "no", "timeout", "crash"]


class LimitedChild:
    """A script that answers lines of JSON by true or false. Its methods may be called from any thread."""

    def __init__(self, script: Path, seconds: float, hint: str) -> None:
        """`seconds`: for each answer. `hint`: how to find out why the script does not start, for messages."""
        self._script, self._seconds, self._hint = script, seconds, hint
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, question: Mapping[str, Any]) -> Answer:
        """The child's answer. Raises ValueError if the child does not start."""
        with self._lock:
            if self._child is None:
                self._start()
            child = self._child
            assert child is not None and child.stdin is not None
            try:
                print(json.dumps(question), file=child.stdin, flush=True)
                reply = self._reply(self._seconds)
            except BrokenPipeError:
                reply = ""
            if reply:
                return "yes" if reply == "true" else "no"
            self._end()
            return "timeout" if reply is None else "crash"

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, str(self._script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            start_new_session=True,  # Ctrl-C is training's
        )
        if self._reply(START_SECONDS) != "ready":
            self._end()
            raise ValueError(f"{self._script} does not start: {self._hint} shows why")

    def _reply(self, seconds: float) -> str | None:
        """A line of the child's; "" if it has ended, None if it is out of time."""
        assert self._child is not None and self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        return self._child.stdout.readline().strip()

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            with self._child:  # waits, and closes its pipes
                pass
            self._child = None
