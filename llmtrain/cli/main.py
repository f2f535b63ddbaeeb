"""The `llmtrain` command: `llmtrain VERB ...`.

Verbs that train read `CONFIG key=value ...` themselves; tools take options. Nothing heavy is imported before a verb's
arguments are read: a tool imports torch and transformers where it runs, so every `--help` takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Protocol

from llmtrain.cli import train
from llmtrain.recipes.command import command, prepare_process, print_text, readable_output
from llmtrain.system.exit_codes import EXIT_INTERRUPTED, EXIT_USER_ERROR
from llmtrain.system.nearest import nearest
from llmtrain.system.terminal import say_error, shown_output
from llmtrain.system.visible import shortened

TRAINING = {
    "pretrain": "raw text to a language model",
    "sft": "instructions and chats to a tuned model",
    "rlhf": "preferences or rewards to a reward model or an aligned policy",
    "tokenizer": "text to a tokenizer",
}
MODEL_TOOLS = {
    "bias": "measure whether a model prefers some groups of people to others",
    "chat": "chat with a tuned model in the terminal",
    "compare": "say whether one model is better than another, or whether that cannot be told",
    "eval": "measure a model on tasks, with intervals",
    "export": "write the model of any checkpoint of a run",
    "generate": "answer a file of prompts",
    "merge": "merge an adapter into its base model",
    "preview": "show what an SFT run will train on",
    "sample": "continue a text with a trained model",
}
"""Tools that open a model or a tokenizer: the process is prepared for them."""
FILE_TOOLS = {
    "configs": "list the configurations that come with the package",
    "crossval": "train on all folds of the data but one, in turn: mean and spread",
    "data": "say what data can be used for, and the commands to run",
    "prepare": "tokenize the data of a recipe, without training, in many processes",
    "report": "show what runs did on one page",
    "sweep": "search for good settings of a recipe",
}
"""Tools that read files, or start other processes: no torch is imported before they have read what they are given."""
TOOLS = dict(sorted((MODEL_TOOLS | FILE_TOOLS).items()))
LAUNCH = {"launch": "start a verb that trains on every GPU, of one node or of several"}
VERBS = TRAINING | LAUNCH | TOOLS
"""Verb -> what it does."""


class Tool(Protocol):
    """A module of a verb that takes options."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; an error that the user can fix is one line, with exit code 2."""
    verb, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    with shown_output():
        run_verb(verb, rest)


def run_verb(verb: str, rest: Sequence[str]) -> None:
    """Run one verb on the rest of its command line."""
    match verb:
        case "-h" | "--help":
            print_text(usage())
        case "--version":
            print(f"llmtrain {version('llmtrain')}")
        case "pretrain":
            train.pretrain(rest)
        case "sft":
            train.sft(rest)
        case "rlhf":
            train.rlhf(rest)
        case "tokenizer":
            train.tokenizer(rest)
        case "launch":
            launch(rest)
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
    lines += ["", "On several GPUs or nodes, as `llmtrain launch [options] VERB CONFIG [key=value ...]`:"]
    lines += [f"  {verb:10} {meaning}" for verb, meaning in LAUNCH.items()]
    lines += ["", "Tools:"]
    lines += [f"  {verb:10} {meaning}" for verb, meaning in TOOLS.items()]
    return "\n".join(
        [*lines, "", "`llmtrain VERB --help` lists what a verb takes, `llmtrain --version` prints the version."]
    )


def run_tool(verb: str, argv: Sequence[str]) -> None:
    """Parse a tool's options and run it."""
    try:
        with readable_output(), command():
            tool = open_tool(verb)
            parser = argparse.ArgumentParser(
                prog=f"llmtrain {verb}", description=tool.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            tool.add_arguments(parser)
            arguments = parser.parse_intermixed_args(argv)
            if verb in MODEL_TOOLS:
                prepare_process()
                hide_developer_messages()
            tool.run(arguments)
    except OSError as error:
        fail(f"{shortened(str(error.filename or ''))}: {error.strerror or error}")


def launch(argv: Sequence[str]) -> None:
    """Start several processes, and end as they do."""
    from llmtrain.cli import launch as verb

    try:
        code = verb.main(argv)
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(code)


def hide_developer_messages() -> None:
    """Hide what transformers says to developers and its progress bars, so that a tool prints its result only."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def open_tool(verb: str) -> Tool:
    """The module of a verb."""
    match verb:
        case "bias":
            from llmtrain.cli import bias

            return bias
        case "chat":
            from llmtrain.cli import chat

            return chat
        case "compare":
            from llmtrain.cli import compare

            return compare
        case "configs":
            from llmtrain.cli import configs

            return configs
        case "crossval":
            from llmtrain.cli import crossval

            return crossval
        case "data":
            from llmtrain.cli import data

            return data
        case "eval":
            from llmtrain.cli import eval as evaluation

            return evaluation
        case "export":
            from llmtrain.cli import export

            return export
        case "generate":
            from llmtrain.cli import generate

            return generate
        case "merge":
            from llmtrain.cli import merge

            return merge
        case "prepare":
            from llmtrain.cli import prepare

            return prepare
        case "preview":
            from llmtrain.cli import preview

            return preview
        case "report":
            from llmtrain.cli import report

            return report
        case "sample":
            from llmtrain.cli import sample

            return sample
        case "sweep":
            from llmtrain.cli import sweep

            return sweep
    raise AssertionError(verb)


def fail(reason: str) -> None:
    """Print an error in one line and stop with exit code 2."""
    say_error(f"error: {reason}")
    sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
