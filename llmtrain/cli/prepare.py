"""Build the token stores of a configuration: `llmtrain prepare CONFIG [key=value ...]`.

Tokenizes the data of any recipe on CPUs, so that training opens finished stores; no model's weights are loaded. Several
of these commands, on all machines that share data.cache_dir, share the work: each takes parts that no other has, and a
part whose process was killed is made by another. The same command goes on where it was stopped. docs/pretrain.md has
more.
"""

from __future__ import annotations

import argparse

from llmtrain.recipes.command import resumable_command
from llmtrain.system.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped configuration")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="as for the recipe")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the cores (default: one a core)")
    parser.add_argument("--recipe", choices=("pretrain", "sft", "rlhf"), help="for a CONFIG that fits several")


def run(arguments: argparse.Namespace) -> None:
    """Read the configuration, and build what it trains on."""
    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers={arguments.workers}: must be at least 1")
    with resumable_command():
        from llmtrain.recipes.prepare_request import read_configs

        configs = read_configs([arguments.config, *arguments.overrides], arguments.recipe)
        from llmtrain.recipes.prepare import prepare  # which imports torch

        prepare(configs, arguments.workers, say)
