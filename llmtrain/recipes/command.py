"""How every recipe starts: `--help`, the configuration, errors as one line with exit code 2."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from transformers.utils.logging import disable_progress_bar

from llmtrain.config.load import help_text, load_config
from llmtrain.config.sections import Section
from llmtrain.system.files import is_disk_full

Config = TypeVar("Config", bound=Section)

EXIT_USER_ERROR = 2


def run_recipe(schema: type[Config], main: Callable[[Config], None]) -> None:
    """Parse `sys.argv` and run `main`; a ValueError or a full disk is told in one line: it is the user's to mend."""
    run_on_arguments(help_text(schema), lambda argv: main(load_config(schema, argv)))


def say_once(line: str) -> None:
    """Print a line, once for all processes of a launch."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def run_on_arguments(usage: str, main: Callable[[Sequence[str]], None]) -> None:
    """The same for a `main` that reads the arguments itself."""
    argv = sys.argv[1:]
    if "--help" in argv or "-h" in argv:
        print(usage)
        return
    for library in ("accelerate", "deepspeed", "torch", "transformers"):
        # What a library will change in its next version is for us to mend, not for the user to read.
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{library}\b")
    if not sys.stderr.isatty():
        disable_progress_bar()
    try:
        main(argv)
    except ValueError as error:
        _refuse(str(error))
    except OSError as error:
        if not is_disk_full(error):
            raise
        _refuse(f"the disk is full ({error.filename or error}): free some space and start again")
    if "WORLD_SIZE" in os.environ:
        _leave(0)  # all is written; taking process groups apart after another rank has gone can wait for good


def _refuse(reason: str) -> NoReturn:
    """Say in one line why this rank stops, and stop."""
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"[rank {rank}] " if rank else ""
    print(f"{prefix}error: {reason}", file=sys.stderr, flush=True)
    if "WORLD_SIZE" in os.environ:
        # Past a failed rank the others may wait in a collective for good, so nothing is torn down in order.
        _leave(EXIT_USER_ERROR)
    sys.exit(EXIT_USER_ERROR)


def _leave(status: int) -> NoReturn:
    """End this process of a launch as it is."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
