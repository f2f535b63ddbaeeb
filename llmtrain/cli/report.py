"""What one or several runs did, on one page: `llmtrain report RUN [RUN ...] [--output FILE]`.

For runs of any recipe, finished, stopped, killed or still going. The page is one file that needs no network.
"""

from __future__ import annotations

import argparse

from llmtrain.system.paths import local_path
from llmtrain.system.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=local_path, help="a run's folder; several are compared")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=local_path,
        help="file to write (default: RUN/report.html; of several runs report.html in this folder)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the page and print its path."""
    from llmtrain.runs.report.report import write_report

    path = write_report(arguments.runs, arguments.output, say)
    say(str(path))
