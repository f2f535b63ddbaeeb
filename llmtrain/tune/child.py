"""A recipe started as a user starts it, in a process of its own: one that is stopped with this process, and saves.

A separate process frees the device's memory at its end, and a crash, or memory that runs out, is one failed run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from llmtrain.system.exit_codes import EXIT_SAVED
from llmtrain.tune.stop import stop_signals

POLL_SECONDS = 0.2


class Stopped(Exception):
    """This process was asked to stop; the recipe that ran has saved what it had. `exit_code`: what to end with."""

    def __init__(self, exit_code: int = EXIT_SAVED) -> None:
        super().__init__()
        self.exit_code = exit_code


def run_recipe(verb: str, arguments: Sequence[str]) -> int:
    """Run `llmtrain VERB ARGUMENTS` to its end; its exit code.

    A signal to stop goes on to the recipe; a second Ctrl-C ends both at once. Raises Stopped after that.
    """
    with stop_signals() as requests:
        code = run_command([sys.executable, "-m", "llmtrain", verb, *arguments], requests.any)
        if requests.any():
            raise Stopped(requests.exit_code)
    return code


def run_command(command: Sequence[str], should_stop: Callable[[], bool], log: Path | None = None) -> int:
    """Run a command to its end; its exit code, or of a signal that ended it the negative number.

    `should_stop` is asked all the time; once it says so, the command gets SIGTERM, on which a recipe saves. `log`: gets
    what is printed.
    """
    supervised = [sys.executable, "-m", "llmtrain.tune.supervised", str(os.getpid()), *command]
    with nullcontext() if log is None else log.open("ab") as output:
        # A separate session: Ctrl-C in a terminal reaches this process alone, so that the command gets one signal.
        process = subprocess.Popen(
            supervised,
            env=_without_step(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
        )
    is_asked = False
    try:
        while (code := _wait(process)) is None:
            if not is_asked and should_stop():
                process.send_signal(signal.SIGTERM)
                is_asked = True
    except BaseException:  # a second Ctrl-C, above all: nothing outlives who watches it
        process.kill()
        process.wait()
        raise
    return code


def _without_step(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the variables of a step of `srun`: its tasks share the runs, and a run is of one of them alone."""
    return {key: value for key, value in environment.items() if not key.startswith(("SLURM_STEP_", "SLURM_NNODES"))}


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None
