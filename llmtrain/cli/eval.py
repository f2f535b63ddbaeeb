"""Measure a model on tasks: `llmtrain eval RUN_OR_MODEL --tasks arc_easy,gsm8k --data FOLDER`.

A task is one of ours, a FILE.py with a TASK, or a file of rows: `{prompt, choices, answer}`, `{prompt, answer}` or
`{text}`; `held_out` is what a pretraining run held out. A task's data is FILE in `--tasks TASK=FILE`, else the file
called after it in `--data`, else on the hub. Results are printed with 95 % intervals, and kept item by item in a file
that `llmtrain compare` reads. docs/evaluate.md has each task's prompt and scores, and how to add one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.cli.columns import in_columns
from llmtrain.cli.options import add_tasks, add_training_data
from llmtrain.system.paths import local_path
from llmtrain.system.run_files import EVALUATION_FILE
from llmtrain.system.terminal import say

if TYPE_CHECKING:
    from llmtrain.config.data import Source
    from llmtrain.eval.tasks.results import Evaluation
    from llmtrain.tasks.rows import TaskRows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="RUN_OR_MODEL", nargs="?", help="a run's folder, a model's, an adapter's, or a GGUF file"
    )
    add_tasks(parser)
    add_training_data(parser)
    parser.add_argument(
        "--output", metavar="FILE.jsonl", type=local_path, help="results by item (default: beside the model)"
    )
    parser.add_argument(
        "--harness", action="store_true", help="hand it to lm-evaluation-harness; --data is a folder of its YAML tasks"
    )


def run(arguments: argparse.Namespace) -> None:
    """Read the data before the model, measure, print, save."""
    if arguments.tasks == "list":
        print("\n".join(list_tasks()))
        return
    if arguments.model is None:
        raise ValueError("which model? Give a run's folder, a model's, an adapter's, or a GGUF file")
    if arguments.harness:
        from llmtrain.eval.tasks.harness import HarnessOptions, run_harness

        names = require_tasks(arguments)
        options = HarnessOptions(names, arguments.limit, arguments.shots, arguments.chat, arguments.data)
        run_harness(arguments.model, options)
        return
    tasks = read_tasks(arguments, [arguments.model])
    output = arguments.output or default_output(arguments.model)
    check_output(output)
    evaluation = evaluate(arguments.model, tasks, arguments, output)
    for line in (*table(evaluation), "", f"by item in {output}"):
        say(line)


def list_tasks() -> list[str]:
    """A line for each of our tasks."""
    from llmtrain.tasks.load import TASKS

    return in_columns([(name, task.source) for name, task in TASKS.items()])


def require_tasks(arguments: argparse.Namespace) -> list[str]:
    """The names of tasks. Raises ValueError if there are none, or an option is out of its range."""
    names = [name.strip() for name in (arguments.tasks or "").split(",") if name.strip()]
    if not names:
        raise ValueError("--tasks names no task: `--tasks list` shows ours")
    least = {"--limit": (arguments.limit, 1), "--shots": (arguments.shots, 0)}
    least["--max-new-tokens"] = (arguments.max_new_tokens, 1)
    for option, (value, minimum) in least.items():
        if value is not None and value < minimum:
            raise ValueError(f"{option}={value}: give at least {minimum}")
    return names


def read_tasks(arguments: argparse.Namespace, models: Sequence[str]) -> list[TaskRows]:
    """The items of each task that is asked for; `held_out` are the documents that the first run of `models` held out.

    Raises ValueError.
    """
    from llmtrain.eval.tasks.held_out import HELD_OUT, held_out_rows
    from llmtrain.runs.folder import CONFIG
    from llmtrain.tasks.rows import read_tasks as read

    names = require_tasks(arguments)
    others = [name for name in names if name != HELD_OUT]
    tasks = read(others, "--tasks", arguments.data, arguments.limit, arguments.shots)
    if len(others) == len(names):
        return tasks
    if any(each.task.name == "text" for each in tasks):
        raise ValueError(f"--tasks: {HELD_OUT} is measured as text, which is there too: measure one of them at a time")
    configs = {model: local_path(model) / CONFIG for model in models}
    run = next((model for model, config in configs.items() if config.is_file()), models[0])
    return [*tasks, held_out_rows(run, configs[run], arguments.limit)]


def default_output(model: str) -> Path:
    """Where results go: into the folder of a run or model; of what is no folder, into this one."""
    folder = local_path(model)
    return (folder if folder.is_dir() else Path()) / EVALUATION_FILE


def check_output(output: Path) -> None:
    """Raises ValueError for a place that cannot be written to, before anything is measured."""
    if not output.parent.is_dir():
        raise ValueError(f"--output={output}: the folder {output.parent} does not exist")
    if output.is_dir():
        raise ValueError(f"--output={output}: is a folder: name a file in it")


def evaluate(
    path: str, tasks: Sequence[TaskRows], arguments: argparse.Namespace, output: Path, *, is_kept: bool = True
) -> Evaluation:
    """The results of a model on all tasks, saved with those that the file has of other tasks and the same weights.

    Not `is_kept`: nothing is left of them on disk; only if they are interrupted.
    """
    from llmtrain.eval.tasks.contamination import find_matches, with_matches
    from llmtrain.eval.tasks.measure import Asking
    from llmtrain.eval.tasks.opened import generated, opened_subject
    from llmtrain.eval.tasks.parts import Unfinished, measured_tasks
    from llmtrain.eval.tasks.results import Evaluation, save_evaluation, with_earlier

    report = say
    sources = training_data(path, arguments.trained_on, report)
    if sources:
        report(f"looking for the items in {', '.join(source.path for source in sources)}")
    matches = find_matches(tasks, sources)
    report(f"loading {path}")
    subject, facts = opened_subject(path, report)
    asking = Asking(generated(subject), facts.stops, arguments.max_new_tokens, arguments.chat)
    unfinished = Unfinished(output, facts.record)
    results = measured_tasks(subject, tasks, asking, unfinished, report)
    if sources:
        results = {name: with_matches(result, matches) for name, result in results.items()}
    evaluation = Evaluation(facts.record, results)
    if is_kept:
        save_evaluation(output, with_earlier(evaluation, output, report))
    unfinished.remove()
    return evaluation


def training_data(path: str, given: Sequence[str] | None, report: Callable[[str], None]) -> list[Source]:
    """The training data that is known: what is given, else that of a run, as far as it is still there.

    Raises ValueError for given data that is not there.
    """
    from llmtrain.config.data import Source
    from llmtrain.config.load import read_yaml
    from llmtrain.data.sources.files import resolve
    from llmtrain.runs.folder import CONFIG

    if given is not None:
        return [Source(path=each, split="all" if Path(each).is_dir() else "train") for each in given if each != "none"]
    saved = local_path(path) / CONFIG
    if not saved.is_file():
        return []
    found = []
    for fields in read_yaml(saved).get("data", {}).get("train", []):
        source = Source.model_validate(fields)
        try:
            resolve(source)
        except ValueError as error:
            report(f"the run's training data cannot be read, so no item is looked for in it: {error}")
            continue
        found.append(source)
    return found


def table(evaluation: Evaluation) -> list[str]:
    """The results in words: a line for each measure."""
    from llmtrain.eval.tasks.results import estimate

    rows: list[tuple[str, ...]] = [("task", "measure", "value", "95 % interval", "items", "chance", "it is")]
    notes = []
    for name, result in evaluation.tasks.items():
        for measure in result.measures:
            found = estimate(result.items, measure)
            interval = f"{found.low:.4f} to {found.high:.4f}" if not math.isnan(found.low) else "needs two items"
            chance = "" if math.isnan(found.chance) else f"{found.chance:.4f}"
            numbers = (f"{found.value:.4f}", interval, f"{found.num_items:,}", chance, found.against_chance)
            rows.append((name, measure.name, *numbers))
        notes += [f"{name}: {note}" for note in result.notes]
    if not any(row[-2] for row in rows[1:]):  # guessing gets nothing of any
        rows = [row[:-2] for row in rows]
    return ["", *in_columns(rows), *notes]
