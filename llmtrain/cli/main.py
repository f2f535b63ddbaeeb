"""The `llmtrain` command: `llmtrain VERB ...`.

Verbs that train read `CONFIG key=value ...` themselves; tools take options. Nothing heavy is imported before the verb
is known, so `llmtrain --help` and a mistyped verb take a fraction of a second.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Protocol

from llmtrain.cli import train
from llmtrain.config.nearest import nearest
from llmtrain.recipes.command import EXIT_USER_ERROR, command, prepare_process, print_text, readable_output

TRAINING = {
    "pretrain": "raw text to a language model",
    "sft": "instructions and chats to a tuned model",
    "rlhf": "preferences or rewards to a reward model or an aligned policy",
    "tokenizer": "text to a tokenizer",
}
TOOLS = {
    "chat": "chat with a tuned model in the terminal",
    "configs": "list the configurations that come with the package",
    "export": "write the model of any checkpoint of a run",
    "generate": "answer a file of prompts",
    "merge": "merge an adapter into its base model",
    "preview": "show what an SFT run will train on",
    "sample": "continue a text with a trained model",
}
VERBS = TRAINING | TOOLS
"""Verb -> what it does."""


class Tool(Protocol):
    """A module of a verb that takes options."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; an error that the user can fix is one line, with exit code 2."""
    verb, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    match verb:
        case "-h" | "--help":
            print_text(usage())
        case "pretrain":
            train.pretrain(rest)
        case "sft":
            train.sft(rest)
        case "rlhf":
            train.rlhf(rest)
        case "tokenizer":
            train.tokenizer(rest)
        case _ if verb in TOOLS:
            run_tool(verb, rest)
        case _:
            near = nearest(verb, VERBS)
            hint = f"the nearest is {near}" if near is not None else "`llmtrain --help` lists them"
            fail(f"unknown verb {verb}: {hint}")


def usage() -> str:
    """What `llmtrain --help` prints."""
    lines = ["usage: llmtrain VERB ...", "", "Verbs that train, as `llmtrain VERB CONFIG [key=value ...]`:"]
    lines += [f"  {verb:10} {meaning}" for verb, meaning in TRAINING.items()]
    lines += ["", "Tools:"]
    lines += [f"  {verb:10} {meaning}" for verb, meaning in TOOLS.items()]
    return "\n".join([*lines, "", "`llmtrain VERB --help` lists what a verb takes."])


def run_tool(verb: str, argv: Sequence[str]) -> None:
    """Parse a tool's options and run it."""
    if verb != "configs":
        prepare_process()
        hide_developer_messages()
    tool = open_tool(verb)
    parser = argparse.ArgumentParser(
        prog=f"llmtrain {verb}", description=tool.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tool.add_arguments(parser)
    try:
        with readable_output(), command():
            tool.run(parser.parse_args(argv))
    except OSError as error:
        fail(f"{error.filename or ''}: {error.strerror or error}")


def hide_developer_messages() -> None:
    """Hide what transformers says to developers and its progress bars, so that a tool prints its result only."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def open_tool(verb: str) -> Tool:
    """The module of a verb, imported now: most import torch and transformers, which takes seconds."""
    match verb:
        case "chat":
            from llmtrain.cli import chat

            return chat
        case "configs":
            from llmtrain.cli import configs

            return configs
        case "export":
            from llmtrain.cli import export

            return export
        case "generate":
            from llmtrain.cli import generate

            return generate
        case "merge":
            from llmtrain.cli import merge

            return merge
        case "preview":
            from llmtrain.cli import preview

            return preview
        case "sample":
            from llmtrain.cli import sample

            return sample
    raise AssertionError(verb)


def fail(reason: str) -> None:
    """Print an error in one line and stop with exit code 2."""
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
