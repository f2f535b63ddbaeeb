"""Is B better than A? `llmtrain compare A B`, on the same items, with the noise of so few of them.

A and B are files of `llmtrain eval`, or runs and models, which are measured first (`--tasks`), or whose folder has an
`evaluation.jsonl` already. Several seeds of one side are given with commas: `A1,A2,A3 B1,B2,B3`. The verdict is about
B: better, worse, or not distinguishable. docs/evaluate.md says by which test.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from llmtrain.cli.columns import in_columns
from llmtrain.cli.eval import default_output, evaluate, read_tasks
from llmtrain.cli.options import add_tasks, add_training_data
from llmtrain.system.paths import local_path
from llmtrain.system.terminal import say

if TYPE_CHECKING:
    from llmtrain.eval.tasks.compared import Compared
    from llmtrain.eval.tasks.results import Evaluation
    from llmtrain.tasks.rows import TaskRows

SUFFIX = ".jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="an evaluation, a run or a model; several seeds with commas")
    parser.add_argument("second", metavar="B", help="what is compared with it")
    add_tasks(parser)
    add_training_data(parser)
    parser.add_argument("--common", action="store_true", help="if their items differ, compare those that both have")


def run(arguments: argparse.Namespace) -> None:
    """Read or make both evaluations, and print what differs."""
    from llmtrain.eval.tasks.compared import compare, left_out, sentences
    from llmtrain.eval.tasks.seeds import seed_sentences, seeds_together
    from llmtrain.statistics.paired import require_scipy

    require_scipy()
    sides = [[name for name in side.split(",") if name] for side in (arguments.first, arguments.second)]
    if not all(sides):
        raise ValueError("usage: llmtrain compare A B")
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"{len(sides[0])} seeds of the one and {len(sides[1])} of the other: give equally many")
    tasks: list[TaskRows] = []
    is_file = [name.endswith(SUFFIX) for side in sides for name in side]
    if all(is_file) and arguments.tasks:
        raise ValueError("--tasks: files of results are compared on all tasks that both have; it measures models only")
    if arguments.tasks:
        tasks = read_tasks(arguments, [name for side in sides for name in side])  # before a model is loaded
    runs = [[evaluation_of(name, tasks, arguments) for name in side] for side in sides]
    first, second = map(seeds_together, runs)
    found = compare(first, second, common=arguments.common)
    about_seeds = seed_sentences(found, *runs, name=arguments.second)
    for line in (*table(found), *left_out(first, second), "", *sentences(found, arguments.second), *about_seeds):
        say(line)


def evaluation_of(name: str, tasks: list[TaskRows], arguments: argparse.Namespace) -> Evaluation:
    """The results of a file, of a model that is measured now, or those that its folder has. Raises ValueError."""
    from llmtrain.eval.tasks.results import read_evaluation

    path = local_path(name)
    if name.endswith(SUFFIX):
        if not path.is_file():
            raise ValueError(f"{name}: no such file")
        return read_evaluation(path)
    if path.is_file() and not name.endswith(".gguf"):
        raise ValueError(f"{name}: is neither a file of `llmtrain eval` (*{SUFFIX}) nor a model")
    if tasks:
        return evaluate(name, tasks, arguments, default_output(name), is_kept=path.is_dir())
    kept = default_output(name)
    if not path.is_dir() or not kept.is_file():
        raise ValueError(f"{name}: it has no evaluation yet: name --tasks to measure it, or run `llmtrain eval` on it")
    return read_evaluation(kept)


def table(found: list[Compared]) -> list[str]:
    """A line for each measure."""
    rows = [("task", "measure", "A", "B", "B - A", "95 % interval", "p", "items", "B is")]
    for each in found:
        pair = each.paired
        interval = f"{pair.low:+.4f} to {pair.high:+.4f}" if not math.isnan(pair.low) else "needs two items"
        rows.append(
            (
                each.task,
                each.measure.name,
                f"{each.first.value:.4f}",
                f"{each.second.value:.4f}",
                f"{pair.difference:+.4f}",
                interval,
                f"{each.p_value:.2g}",
                f"{pair.num_items:,}",
                each.verdict,
            )
        )
    return in_columns(rows)
