"""The `llmtrain` command: one verb a file."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from transformers.utils import logging

from llmtrain.cli import chat, generate, merge, preview, sample
from llmtrain.recipes.command import EXIT_USER_ERROR

VERBS = {"chat": chat, "generate": generate, "merge": merge, "preview": preview, "sample": sample}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; what a user can mend is told in one line, with exit code 2."""
    parser = argparse.ArgumentParser(prog="llmtrain", description="Tools around the recipes.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        assert verb.__doc__ is not None
        verb.add_arguments(verbs.add_parser(name, help=verb.__doc__.splitlines()[0], description=verb.__doc__))
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning)  # for us to mend, not for the user to read
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        VERBS[arguments.verb].run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
