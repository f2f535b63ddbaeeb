"""How every command starts and ends: `--help`, the configuration, errors as one line with exit code 2, signals.

A recipe starts as a script (`python recipes/sft.py CONFIG`), a verb (`llmtrain sft CONFIG`) or a module
(`python -m llmtrain.recipes.sft CONFIG`), alone or under `accelerate launch`. `run_recipe` is the start of all of them,
in a `command`. Nothing heavy is imported before the arguments are read, and no torch before the configuration has been:
`--help` and a mistyped key take a fraction of a second.
A module is the exception: it has imported torch and peft by then, too late for huge pages (`system.memory`), so under a
launcher take `-m llmtrain sft`.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from llmtrain.system.ending import Ending, LaunchEnded
from llmtrain.system.exit_codes import EXIT_BROKEN_PIPE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SAVED, EXIT_USER_ERROR
from llmtrain.system.files import is_disk_full, one_line
from llmtrain.system.interrupt import note, watched_signals
from llmtrain.system.leaving import has_failed_neighbor, is_launched, launched_rank, leave, report_to_launcher
from llmtrain.system.memory import is_out_of_memory
from llmtrain.system.parent import end_with_launcher
from llmtrain.system.stop_signal import Stopped, StopSignal
from llmtrain.system.terminal import say, say_error, shown_output
from llmtrain.system.visible import shortened, visible_line, visible_message

if TYPE_CHECKING:
    from llmtrain.config.sections import Section

Config = TypeVar("Config", bound="Section")

OF_A_PATH = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""Errors of a path that can only be what was given, or what the user has put there."""
LESS_MEMORY = (
    "shorter texts or fewer at once need less (train.microbatch_tokens, data.max_seq_len), so do "
    "train.activation_checkpointing, an adapter and a smaller model"
)
UNTRAINED = "before training: nothing is lost, and what has been tokenized is kept"


def run_recipe(schema: type[Config], main: Callable[[Config], None], argv: Sequence[str] | None = None) -> None:
    """Read `CONFIG.yaml [key=value ...]` into a configuration and run `main` on it; `argv` None: the command line's."""
    from llmtrain.config.help import help_text
    from llmtrain.config.load import load_config
    from llmtrain.recipes.early import check_early

    argv = sys.argv[1:] if argv is None else argv
    if asks_for_help(argv):
        print_text(help_text(schema))
        return
    config = load_config(schema, argv)
    check_early(config)
    prepare_process()
    main(config)


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a command line asks what it may hold."""
    return "--help" in argv or "-h" in argv


@contextmanager
def command() -> Iterator[None]:
    """A command that the user started: a ValueError or a full disk is one line and exit code 2, as the user can fix it.

    Ctrl-C is one line and exit code 130, as a shell gives; a second one ends at once.
    """
    try:
        with shown_output(), _one_line_errors(), watched_signals():
            yield
    except KeyboardInterrupt:
        note("\ninterrupted")
        leave(EXIT_INTERRUPTED)  # Python would wait for threads, and print what a second one interrupts there
    if is_launched():
        leave(0)  # everything is written; closing process groups after another rank has left can wait forever


@contextmanager
def resumable_command() -> Iterator[StopSignal]:
    """A command that, started again, goes on from what it has done; the signals that ask it to stop.

    As `command`; SIGTERM and SIGUSR1 are one line and exit code 75.
    """
    try:
        with shown_output(), _one_line_errors(), StopSignal() as stop:
            end_with_launcher()
            yield stop
    except KeyboardInterrupt as error:
        line = f"interrupted {str(error) or UNTRAINED}; {run_again()}"
        say_once(line) if is_launched() else note(f"\n{line}")
        leave(EXIT_INTERRUPTED)
    except Stopped as stopped:
        if str(stopped) or not has_failed_neighbor():  # else that one's error is the reason, and not a signal
            say_once(f"interrupted {str(stopped) or UNTRAINED}; {run_again()}")
        leave(EXIT_SAVED)
    if is_launched():
        leave(0)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        _refuse(str(error))
    except RecursionError:
        _refuse("something that was given is nested too deeply to be read")
    except LaunchEnded as error:
        _end_with(error.ending)
    except Exception as error:
        if is_out_of_memory(error):
            _refuse(f"not enough memory ({shortened(one_line(error))}): {LESS_MEMORY}")
        if isinstance(error, OSError) and is_disk_full(error):
            _refuse(f"the disk is full ({error.filename or error}): free some space and start again")
        if isinstance(error, OSError) and error.filename is not None and error.errno in OF_A_PATH:
            _refuse(f"{shortened(str(error.filename))}: {error.strerror}")
        if not is_launched():
            raise
        traceback.print_exc()
        report_to_launcher(f"{type(error).__name__}: {visible_line(one_line(error))}")
        leave(EXIT_FAILED)  # the others may wait for this process, and Python for its process groups


def _end_with(ending: Ending) -> NoReturn:
    """End as another rank did; the watchdog has said which."""
    if ending.kind != "interrupted":
        report_to_launcher(ending.line, is_cause=False)
    leave(ending.status)


def run_again() -> str:
    """How a command that was interrupted goes on: with the command line that started it."""
    if is_launched():
        return "start the same command again to continue"
    script, *arguments = sys.argv
    name = Path(script).name
    starts = {"llmtrain": ["llmtrain"], "__main__.py": ["python", "-m", "llmtrain"]}.get(name, ["python", script])
    return f"run it again to continue: {shlex.join([*starts, *arguments])}"


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
    has_bars = sys.stderr.isatty()
    if not has_bars:
        # Which tqdm reads once: transformers reads GGUF under a bar of its own.
        os.environ.setdefault("TQDM_DISABLE", "1")
    import torch

    from llmtrain.system.memory import tune_for_training

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # deepspeed, whoever imports it, reports its choice otherwise
        tune_for_training()
    from transformers.utils.logging import disable_progress_bar

    for library in ("accelerate", "deepspeed", "torch", "transformers"):
        # What a library will change in its next version is for us to fix, not for the user to read.
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{library}\b")
    if not has_bars:
        disable_progress_bar()


def say_once(line: str) -> None:
    """Print a line, once for all processes of a launch."""
    if launched_rank() == 0:
        say(line)


def _refuse(reason: str) -> NoReturn:
    """Say in one line why this rank stops, and stop."""
    line = f"error: {reason}"
    if not report_to_launcher(visible_message(line)):
        rank = launched_rank()
        say_error(f"[rank {rank}] {line}" if rank else line)
    if is_launched():
        # After a failed rank the others may wait in a collective forever, so nothing is closed in order.
        leave(EXIT_USER_ERROR)
    sys.exit(EXIT_USER_ERROR)
