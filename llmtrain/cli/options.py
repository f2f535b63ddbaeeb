"""Options that several verbs take."""

from __future__ import annotations

import argparse
from typing import Any


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How answers are drawn."""
    add_drawing(parser, 512, 0.7)
    parser.add_argument("--top-p", type=float, default=0.95, help="share of the likeliest tokens (default: 0.95)")


def add_drawing(parser: argparse.ArgumentParser, longest: int, temperature: float) -> None:
    """How many tokens are drawn, and how; with the defaults."""
    parser.add_argument("--max-new-tokens", type=int, default=longest, help=f"longest answer (default: {longest})")
    parser.add_argument(
        "--temperature", type=float, default=temperature, help=f"0 takes the likeliest token (default: {temperature})"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")


def add_template_kwargs(parser: argparse.ArgumentParser) -> None:
    """What the chat template is given besides messages."""
    parser.add_argument(
        "--template-kwarg",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an argument of the chat template, such as enable_thinking=false; may be given several times",
    )


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """What is measured."""
    parser.add_argument("--tasks", metavar="TASK[=FILE],...", help="tasks, or files of rows; `list` shows ours")
    parser.add_argument("--data", metavar="PATH", help="a file, or a folder with a file per task (default: the hub)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each task")
    parser.add_argument("--shots", type=int, metavar="N", help="the first N rows are examples (default: the task's)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the task's)")
    parser.add_argument("--chat", action="store_true", help="ask through the chat template (default: as plain text)")


def add_training_data(parser: argparse.ArgumentParser) -> None:
    """What the model was trained on."""
    parser.add_argument(
        "--trained-on",
        metavar="PATH",
        action="append",
        help="look for the items in this training data; `none`: nowhere (default: a run's own data.train)",
    )


def add_dtype(parser: argparse.ArgumentParser, default: str) -> None:
    """The type of the weights that are written; `default`: whose it is without the option."""
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help=f"of the weights (default: {default})")


def template_kwargs(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the chat template, their values read as YAML. Raises ValueError for a word that is none."""
    from llmtrain.config.load import parsed_yaml

    found = {}
    for word in arguments.template_kwarg:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ValueError(f"--template-kwarg {word}: give it as KEY=VALUE, such as enable_thinking=false")
        try:
            found[name] = parsed_yaml(value)
        except ValueError:
            found[name] = value
    return found


def check_sampling(arguments: argparse.Namespace) -> None:
    """Raises ValueError for an option out of its range."""
    ranges = {
        "--max-new-tokens": (arguments.max_new_tokens, arguments.max_new_tokens >= 1, "at least 1"),
        "--temperature": (arguments.temperature, arguments.temperature >= 0, "0 or more"),
        "--seed": (arguments.seed, abs(arguments.seed) < 2**63, "of at most 63 bits"),
    }
    if "top_p" in arguments:
        ranges["--top-p"] = (arguments.top_p, 0 < arguments.top_p <= 1, "above 0 and at most 1")
    if "top_k" in arguments:
        ranges["--top-k"] = (arguments.top_k, arguments.top_k >= 0, "0 or more")
    for name, (value, holds, allowed) in ranges.items():
        if not holds:
            raise ValueError(f"{name}={value}: must be {allowed}")
