"""Say what data can be used for: `llmtrain data PATH [PATH ...] [key=value ...]`.

For each kind of training: how many rows fit, in which format, what a row becomes, which do not fit and why; then the
commands to run. PATH is what data.train takes: a file, a glob, a folder, the name of a dataset on the hub. Keys are a
source's: fields={prompt: question, completion: reply}, text_field=body, split=test, slice=0%:10%. No model is loaded.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("given", metavar="PATH", nargs="+", help="a path, and keys of the source as key=value")
    parser.add_argument("--rows", type=int, default=10_000, help="rows to read of each path (default: 10000)")


def run(arguments: argparse.Namespace) -> None:
    """Look at each path, print what fits, and the commands."""
    from llmtrain.cli.survey import print_surveys

    if arguments.rows < 1:
        raise ValueError(f"--rows {arguments.rows}: give at least 1")
    print_surveys(arguments.given, arguments.rows)
