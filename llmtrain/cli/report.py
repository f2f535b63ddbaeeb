"""What one or several runs did, on one page: `llmtrain report RUN [RUN ...] [--output FILE]`.

For runs of any recipe, finished, stopped, killed or still going. The page is one file that needs no network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmtrain.system.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run's folder; several are compared")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="file to write (default: RUN/report.html; of several runs report.html in this folder)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the page and print its path."""
    from llmtrain.runs.report.report import write_report

    output = None if arguments.output is None else arguments.output.expanduser()
    path = write_report([folder.expanduser() for folder in arguments.runs], output, say)
    say(str(path))
