"""A recipe with one fault on one rank of a launch: `python faulty.py FAULT RANK RECIPE CONFIG [key=value ...]`.

FAULT is a name, or NAME:PLACE. What each rank would have ended with alone is left in `outcomes` beside CONFIG, if there
is such a folder.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llmtrain.rollout import sample
from llmtrain.rollout.local import generate
from llmtrain.train import checkpoint_writer, runtime

SLOW_SAVE_SECONDS, SLOW_STEP_SECONDS = 4.0, 0.5


def raise_error() -> None:
    raise ZeroDivisionError("a fault on purpose")


def raise_user_error() -> None:
    raise ValueError("data.train[0]: a fault on purpose")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    while True:
        signal.pause()


def be_stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def get_signal() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


FAULTS = {
    function.__name__: function for function in (raise_error, raise_user_error, be_killed, hang, be_stopped, get_signal)
}


def in_step_three(fault: Callable[[], None]) -> Any:
    """The fault in the third step."""
    original, steps = runtime.Runtime.step, iter(range(1_000_000))

    def step(self: runtime.Runtime) -> Any:
        if next(steps) == 2:
            fault()
        return original(self)

    return patch.object(runtime.Runtime, "step", step)


def before_training(fault: Callable[[], None]) -> Any:
    """The fault when the model is handed to the engine, for which all ranks meet."""
    original = runtime.Runtime.prepare

    def prepare(*arguments: Any) -> Any:
        fault()
        return original(*arguments)

    return patch.object(runtime.Runtime, "prepare", prepare)


def in_a_rollout(fault: Callable[[], None]) -> Any:
    """The fault in the middle of the generation of a rollout, once: of its second token."""
    original, grow, tokens = sample.Sampler._round, generate._step, iter(range(1_000_000))

    def step(*arguments: Any) -> None:
        if next(tokens) == 1:
            fault()
        grow(*arguments)

    def round_(*arguments: Any) -> Any:
        with patch.object(generate, "_step", step):
            return original(*arguments)

    return patch.object(sample.Sampler, "_round", round_)


PLACES = {"": in_step_three, "before_training": before_training, "in_a_rollout": in_a_rollout}


def slow() -> Any:
    """Steps that take long."""
    original = runtime.Runtime.seed_step

    def seed_step(*arguments: Any) -> None:
        time.sleep(SLOW_STEP_SECONDS)
        original(*arguments)

    return patch.object(runtime.Runtime, "seed_step", seed_step)


def slow_save() -> Any:
    """Saves that take long."""
    original = checkpoint_writer._Writer.finish

    def finish(*arguments: Any) -> None:
        time.sleep(SLOW_SAVE_SECONDS)
        original(*arguments)

    return patch.object(checkpoint_writer._Writer, "finish", finish)


def main() -> None:
    fault, rank, recipe, *arguments = sys.argv[1:]
    outcomes = Path(arguments[0]).with_name("outcomes")
    if outcomes.is_dir():
        os.environ["LLMTRAIN_OUTCOMES"] = str(outcomes)
    name, _, place = fault.partition(":")
    with ExitStack() as stack:
        if rank == os.environ["RANK"]:
            if name in ("slow", "slow_save"):
                stack.enter_context(slow() if name == "slow" else slow_save())
            else:
                stack.enter_context(PLACES[place](FAULTS[name]))
        sys.argv = [recipe, *arguments]
        runpy.run_path(recipe, run_name="__main__")


if __name__ == "__main__":
    main()
