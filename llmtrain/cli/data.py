"""Look at data before it is used: `llmtrain data PATH [PATH ...] [key=value ...]`, or CONFIG in place of paths.

For each kind of training: how many rows fit, in which format, what a row becomes, which do not fit and why; then the
commands to run. PATH is what data.train takes: a file, a glob, a folder, the name of a dataset on the hub. Keys are a
source's: fields={prompt: question, completion: reply}, text_field=body, split=test, slice=0%:10%. CONFIG is a recipe's
YAML file, or the name of a shipped one: its sources, held-out data and cleaning are looked at.

With --report, one page more: lengths, languages, duplicates, repetition, contamination, personal data, odd characters,
tokens, topics, the balance of preferences, what cleaning would drop. docs/data.md explains how to read it.
"""

from __future__ import annotations

import argparse

from llmtrain.system.paths import local_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("given", metavar="PATH|CONFIG", nargs="+", help="paths, or a configuration; and key=value")
    parser.add_argument(
        "--rows",
        type=int,
        default=10_000,
        help="rows to look at (default: 10000): of each path the first, for the report a sample of all",
    )
    parser.add_argument("--report", metavar="FILE.html", type=local_path, help="write what is in the data as one page")
    parser.add_argument("--against", metavar="PATH", action="append", help="evaluation files to look for in the data")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="count tokens by it (default: the configuration's)")
    parser.add_argument("--model", metavar="RUN_OR_MODEL", help="show the rows that it predicts best and worst")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """Look at each source, print what fits, and the commands; measure and write the page if one is asked for."""
    from llmtrain.cli.quality import configured, names_config, wanted, write_report
    from llmtrain.cli.survey import print_surveys, sources_of

    if arguments.rows < 1:
        raise ValueError(f"--rows {arguments.rows}: give at least 1")
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"--seed {arguments.seed}: give 0 or more, below 2^63")
    for option in ("against", "tokenizer", "model"):
        if arguments.report is None and vars(arguments)[option] is not None:
            raise ValueError(f"--{option} is for the report: add --report FILE.html")
    config = configured(arguments.given) if names_config(arguments.given) else None
    sources = sources_of(arguments.given) if config is None else [source for source, _ in config.sources]
    options = None if arguments.report is None else wanted(arguments, config)
    surveys = print_surveys(sources, arguments.rows)
    if options is not None:
        write_report(surveys, options)
