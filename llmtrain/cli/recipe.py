"""How every recipe starts: `--help`, the configuration, errors as one line with exit code 2."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

from llmtrain.config import Section, help_text, load_config

Config = TypeVar("Config", bound=Section)

EXIT_USER_ERROR = 2


def run_recipe(schema: type[Config], main: Callable[[Config], None]) -> None:
    """Parse `sys.argv` and run `main`; a ValueError is told in one line, since it is the user's to mend."""
    argv = sys.argv[1:]
    if "--help" in argv or "-h" in argv:
        print(help_text(schema))
        return
    for library in ("accelerate", "deepspeed", "torch", "transformers"):
        # What a library will change in its next version is for us to mend, not for the user to read.
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{library}\b")
    try:
        main(load_config(schema, argv))
    except ValueError as error:
        rank = int(os.environ.get("RANK", "0"))
        prefix = f"[rank {rank}] " if rank else ""
        print(f"{prefix}error: {error}", file=sys.stderr, flush=True)
        # Past a failed rank the others may wait in a collective for good, so nothing is torn down in order.
        sys.stdout.flush()
        os._exit(EXIT_USER_ERROR) if "WORLD_SIZE" in os.environ else sys.exit(EXIT_USER_ERROR)
