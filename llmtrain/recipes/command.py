"""How every recipe starts: `--help`, the configuration, errors as one line with exit code 2.

A recipe starts as a script (`python recipes/sft.py CONFIG`), a verb (`llmtrain sft CONFIG`) or a module
(`python -m llmtrain.recipes.sft CONFIG`), alone or under `accelerate launch`. `run_recipe` is the start of all of them.
It imports no torch before the configuration has been read, so `--help` and a mistyped key take a fraction of a second.
A module is the exception: it has imported torch and peft by then, too late for huge pages (`system.memory`), so under a
launcher take `-m llmtrain sft`.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from llmtrain.config.help import help_text
from llmtrain.config.load import load_config
from llmtrain.config.sections import Section
from llmtrain.system.files import is_disk_full
from llmtrain.system.memory import tune_for_training

Config = TypeVar("Config", bound=Section)

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


def run_recipe(schema: type[Config], main: Callable[[Config], None], argv: Sequence[str] | None = None) -> None:
    """Read `CONFIG.yaml [key=value ...]` into a configuration and run `main` on it; `argv` None: the command line's."""
    argv = sys.argv[1:] if argv is None else argv
    if asks_for_help(argv):
        print_text(help_text(schema))
        return
    with command():
        config = load_config(schema, argv)
        prepare_process()
        main(config)


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a command line asks what it may hold."""
    return "--help" in argv or "-h" in argv


@contextmanager
def command() -> Iterator[None]:
    """A command that the user started: a ValueError or a full disk is one line and exit code 2, as the user can fix it.

    Ctrl-C is one word and exit code 130, as a shell gives. A process of a launch ends here: see `_leave`.
    """
    try:
        yield
    except ValueError as error:
        _refuse(str(error))
    except OSError as error:
        if not is_disk_full(error):
            raise
        _refuse(f"the disk is full ({error.filename or error}): free some space and start again")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        if "WORLD_SIZE" in os.environ:
            _leave(EXIT_INTERRUPTED)
        sys.exit(EXIT_INTERRUPTED)
    if "WORLD_SIZE" in os.environ:
        _leave(0)  # everything is written; closing process groups after another rank has left can wait forever


@contextmanager
def readable_output() -> Iterator[None]:
    """Output that a reader may close early, as `| head` does: the command then ends without a word.

    Not for training: a pipe that breaks there may be one between processes.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, not when Python exits, where the error could not be caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it exits
        sys.exit(EXIT_BROKEN_PIPE)


def print_text(text: str) -> None:
    """Print a text such as a help page, which a reader may close early."""
    with readable_output():
        print(text)


def prepare_process() -> None:
    """Prepare a process for a CPU, and hide what libraries say to their developers; before a recipe is imported."""
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # deepspeed, whoever imports it, reports its choice otherwise
        tune_for_training()
    from transformers.utils.logging import disable_progress_bar

    for library in ("accelerate", "deepspeed", "torch", "transformers"):
        # What a library will change in its next version is for us to fix, not for the user to read.
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{library}\b")
    if not sys.stderr.isatty():
        disable_progress_bar()


def say_once(line: str) -> None:
    """Print a line, once for all processes of a launch."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def _refuse(reason: str) -> NoReturn:
    """Say in one line why this rank stops, and stop."""
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"[rank {rank}] " if rank else ""
    print(f"{prefix}error: {reason}", file=sys.stderr, flush=True)
    if "WORLD_SIZE" in os.environ:
        # After a failed rank the others may wait in a collective forever, so nothing is closed in order.
        _leave(EXIT_USER_ERROR)
    sys.exit(EXIT_USER_ERROR)


def _leave(status: int) -> NoReturn:
    """End this process of a launch at once, without closing its process groups."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
