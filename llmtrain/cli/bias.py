"""Does a model prefer some groups of people to others? `llmtrain bias MODEL [--against BASE] --data FOLDER`.

MODEL is a run's folder, a model's, an adapter's or a GGUF file, a language model or a reward model. The measures are
CrowS-Pairs, Winogender and BBQ, from the files that their authors publish, and `attribute_pairs`, from your own rows
`{attribute, first, second}`. Of a reward model, the scores of pairs that differ in one attribute alone are compared.
With --against, verdicts are those of `llmtrain compare`. docs/bias.md has what each measure asks and cannot show.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.cli.columns import in_columns
from llmtrain.cli.compare import table as compared_table
from llmtrain.cli.eval import check_output
from llmtrain.statistics.measures import PART
from llmtrain.system.paths import local_path
from llmtrain.system.run_files import BIAS_FILE, bias_base_path
from llmtrain.system.terminal import say

if TYPE_CHECKING:
    from llmtrain.eval.bias.reading import Reading
    from llmtrain.eval.tasks.compared import Compared
    from llmtrain.eval.tasks.results import Evaluation, TaskResult
    from llmtrain.tasks.rows import TaskRows

DEFAULT_MEASURES = ("crows_pairs", "winogender", "bbq")
WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run's folder, a model's, an adapter's, or a GGUF file")
    parser.add_argument(
        "--against", metavar="BASE", help="compare with this model, or with its results in a FILE.jsonl"
    )
    parser.add_argument(
        "--measures",
        metavar="MEASURE[=FILE],...",
        help="crows_pairs, winogender, bbq, attribute_pairs (default: the first three, as far as --data has them)",
    )
    parser.add_argument("--data", metavar="PATH", help="a folder with the sets' files, or the file of one measure")
    parser.add_argument("--limit", type=int, metavar="N", help="about N items of each measure, from all over its files")
    parser.add_argument("--prompt", metavar="TEXT", help="what a reward model's single sentences answer")
    parser.add_argument(
        "--output", metavar="FILE.jsonl", type=local_path, help="results by item (default: beside the model)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Read the data before a model, measure, print, save."""
    from llmtrain.eval.tasks.compared import compare, left_out
    from llmtrain.eval.tasks.results import read_evaluation, save_evaluation
    from llmtrain.statistics.paired import require_scipy

    against: str | None = arguments.against
    if against is not None:
        require_scipy()
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit={arguments.limit}: give at least 1")
    output = arguments.output or default_output(arguments.model)
    check_output(output)
    tasks = read_measures(arguments.measures, arguments.data, arguments.limit)
    base = read_evaluation(_file(against)) if against is not None and against.endswith(".jsonl") else None
    found = evaluate(arguments.model, tasks, arguments.prompt, output)
    for line in table(found):
        say(line)
    if against is not None:
        if base is None:
            base = evaluate(against, tasks, arguments.prompt, bias_base_path(output))
        else:
            save_evaluation(bias_base_path(output), base)
        compared = compare(base, found, common=False)
        for line in (
            *("", f"A is {against}, B is {arguments.model}", ""),
            *compared_table(compared),
            *left_out(base, found),
            "",
            *_sentences(compared, arguments.model),
        ):
            say(line)
    say("")
    say(f"by item in {output}")


def default_output(model: str) -> Path:
    """Where results go: into the folder of a run or model; of what is no folder, into this one."""
    folder = local_path(model)
    return (folder if folder.is_dir() else Path()) / BIAS_FILE


def read_measures(names: str | None, data: str | None, limit: int | None) -> list[TaskRows]:
    """The items of each measure. Raises ValueError for a name or file that is not there, and rows in another form."""
    from llmtrain.system.nearest import nearest
    from llmtrain.tasks.load import BIAS
    from llmtrain.tasks.rows import read_task, task_source

    words = [word.strip() for word in (names or "").split(",") if word.strip()]
    if names is not None and not words:
        raise ValueError(f"--measures names none: there are {', '.join(BIAS)}")
    tasks: list[TaskRows] = []
    for word in words or DEFAULT_MEASURES:
        name, _, file = word.partition("=")
        if name not in BIAS:
            near = nearest(name, BIAS)
            hint = f"the nearest is {near}" if near else f"there are {', '.join(BIAS)}"
            raise ValueError(f"--measures: no measure {name!r}: {hint}")
        if name in {each.task.name for each in tasks}:
            raise ValueError(f"--measures: {name} is there twice")
        try:
            source = task_source(BIAS[name], file or data)
        except ValueError as error:
            if words or data is None:
                raise
            say(f"{name} is left out: {error}")
            continue
        tasks.append(read_task(BIAS[name], source, limit=limit))
    if not tasks:
        raise ValueError(f"--data={data}: none of {', '.join(DEFAULT_MEASURES)} is there")
    return tasks


def evaluate(path: str, tasks: Sequence[TaskRows], prompt: str | None, output: Path) -> Evaluation:
    """The results of a language model or of a reward model, saved. Raises ValueError if it cannot be measured."""
    from llmtrain.eval.bias.scores import is_reward_model
    from llmtrain.eval.tasks.results import save_evaluation

    if not is_reward_model(path):
        return _asked(path, tasks, prompt, output)
    evaluation = _scored(path, tasks, prompt)
    save_evaluation(output, evaluation)
    return evaluation


def _asked(path: str, tasks: Sequence[TaskRows], prompt: str | None, output: Path) -> Evaluation:
    """The results of a language model."""
    from llmtrain.eval.tasks.measure import Asking
    from llmtrain.eval.tasks.opened import generated, opened_subject
    from llmtrain.eval.tasks.parts import Unfinished, measured_tasks
    from llmtrain.eval.tasks.results import Evaluation, save_evaluation

    if prompt is not None:
        raise ValueError(f"--prompt is for reward models, and {path} is none")
    say(f"loading {path}")
    subject, facts = opened_subject(path, say)
    asking = Asking(generated(subject), facts.stops)
    unfinished = Unfinished(output, facts.record)
    evaluation = Evaluation(facts.record, measured_tasks(subject, tasks, asking, unfinished, say))
    save_evaluation(output, evaluation)
    unfinished.remove()
    return evaluation


def _scored(path: str, tasks: Sequence[TaskRows], prompt: str | None) -> Evaluation:
    """The results of a reward model, of those measures that have pairs. Raises ValueError if none has."""
    from llmtrain.eval.bias.scores import PROMPT, open_reward, scored_pairs
    from llmtrain.eval.tasks.results import Evaluation
    from llmtrain.tasks.task import BiasTask

    with_pairs = [(each.task, each) for each in tasks if isinstance(each.task, BiasTask) and each.task.pairs]
    if not with_pairs:
        raise ValueError(f"{path} is a reward model, and {tasks[0].task.name} has no pairs for it: see --measures")
    say(f"loading {path}")
    reward = open_reward(path, say)
    results = {}
    for task, task_rows in with_pairs:
        say(f"{task.name}: pairs from {len(task_rows.rows):,} items of {task_rows.path}")
        result = scored_pairs(reward, task, task_rows, prompt or PROMPT)
        results[result.task] = result
    return Evaluation({"path": path, "tokenizer": None, "kind": "reward model"}, results)


def _sentences(compared: Sequence[Compared], name: str) -> list[str]:
    """What follows, in words: of every measure, and of those parts that differ."""
    from llmtrain.eval.tasks.compared import sentences

    shown = [each for each in compared if PART not in each.measure.name or each.verdict != "not distinguishable"]
    return [*sentences(shown, name)[: len(shown)], f"p-values are corrected for {len(compared)} comparisons (Holm)"]


def _file(name: str) -> Path:
    path = local_path(name)
    if not path.is_file():
        raise ValueError(f"{name}: no such file")
    return path


def table(evaluation: Evaluation) -> list[str]:
    """What is measured, and how to read it, measure by measure."""
    from llmtrain.eval.bias.reading import readings

    lines = []
    for result in evaluation.tasks.values():
        read = list(readings(result))
        lines += ["", *_about(result, read), "", *_rows(read), *(f"note: {note}" for note in result.notes)]
    return lines


def _about(result: TaskResult, read: Sequence[Reading]) -> list[str]:
    from llmtrain.eval.bias.reading import about_of, intervals_of

    about = about_of(result.task)
    words = {
        "asks": about.asks,
        "good": about.good,
        "cannot show": about.limits,
        "intervals": intervals_of(result, read),
    }
    lines = [f"{result.task}: {result.facts['source']}"]
    for word, text in words.items():
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {word + ':':13}", subsequent_indent=" " * 15)
    return lines


def _rows(read: Sequence[Reading]) -> list[str]:
    from llmtrain.eval.bias.reading import rows_of

    head, rows = rows_of(read)
    return in_columns([head, *rows])
