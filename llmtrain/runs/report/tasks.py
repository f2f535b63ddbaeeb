"""The section of tasks: each measure of `eval.tasks` over steps, and the comparison of runs that have evaluations.

The comparison is that of `llmtrain compare`: of the first run with each other one, on the same items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan

from markupsafe import Markup

from llmtrain.eval.tasks.compared import Compared, compare, left_out, sentences
from llmtrain.eval.tasks.results import Evaluation, estimate, read_evaluation
from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.curves import column
from llmtrain.runs.report.html import figure, grid, join, note, source, subtitle, table, titled
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.over_time import measure_figure
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.values import number
from llmtrain.runs.report.verdict_words import verdict_cell
from llmtrain.system.run_files import EVALUATION_FILE

PREFIX = "eval_task/"
ENDS_OF_FIELDS = ("_low", "_high", "_chance")
SHARES = {"acc", "acc_norm", "ends", "strict", "flexible", "pass"}


def tasks(records: Sequence[RunRecord]) -> Section | None:
    """Figures of the tasks that the runs measured, the evaluation of one run, the comparison of several."""
    figures = list(_over_time(records))
    evaluated = list(_evaluated(records))
    if not figures and not evaluated:
        return None
    parts = [grid(figures)] if figures else []
    if len(evaluated) == 1:
        parts += _one(*evaluated[0])
    for name, evaluation in evaluated[1:]:
        parts += _compared(evaluated[0], (name, evaluation), len(evaluated) - 1)
    return Section("Tasks", "tasks", join(*parts), "What can the model do, and is one better than the other?")


def _over_time(records: Sequence[RunRecord]) -> Iterator[Markup]:
    fields = dict.fromkeys(name for record in records for name in record.eval_rows.names if name.startswith(PREFIX))
    for field in fields:
        if any(field.endswith(end) and field.removesuffix(end) in fields for end in ENDS_OF_FIELDS):
            continue
        task, _, measure = field.removeprefix(PREFIX).rpartition("/")
        guessed = {value for record in records for value in column(record.eval_rows, f"{field}_chance").y.tolist()}
        chance = min(guessed) if len(guessed) == 1 else None
        drawn = measure_figure(records, field, measure.replace("_", " "), is_share=measure in SHARES, chance=chance)
        if drawn is not None:
            caption = "On the same items at each evaluation, the first ones of its data."
            yield figure(drawn, titled(f"{task}: {measure}", caption), f"metrics.jsonl: {field}")


def _evaluated(records: Sequence[RunRecord]) -> Iterator[tuple[str, Evaluation]]:
    """The runs that `llmtrain eval` has measured, by name."""
    names = short_names([record.folder for record in records])
    for name, record in zip(names, records, strict=True):
        if (record.folder / EVALUATION_FILE).is_file():
            yield name, read_evaluation(record.folder / EVALUATION_FILE)


def _one(name: str, evaluation: Evaluation) -> Iterator[Markup]:
    yield subtitle("Measured after training")
    rows = []
    for task, result in evaluation.tasks.items():
        for measure in result.measures:
            found = estimate(result.items, measure)
            interval = "needs two items" if isnan(found.low) else f"{number(found.low)} to {number(found.high)}"
            chance = "" if isnan(found.chance) else number(found.chance)
            count = f"{found.num_items:,}"
            rows.append((task, measure.name, number(found.value), interval, count, chance, found.against_chance))
    yield table(("task", "measure", "value", "95 % interval", "items", "chance", "it is"), rows, numbers=(2, 3, 4, 5))
    yield source(EVALUATION_FILE)


def _compared(one: tuple[str, Evaluation], other: tuple[str, Evaluation], num_pairs: int) -> Iterator[Markup]:
    (first_name, first), (name, second) = one, other
    yield subtitle(f"{name} compared with {first_name}")
    try:
        found = compare(first, second, common=True, num_pairs=num_pairs)
    except ValueError as error:
        yield note(f"Not compared: {error}.")
        return
    head = ("task", "measure", first_name, name, "difference, 95 % interval", "p", "items", f"{name} is")
    yield table(head, [_row(each) for each in found], numbers=range(2, 7))
    for line in (*sentences(found, name, num_pairs), *left_out(first, second)):
        yield note(line)
    yield source(EVALUATION_FILE)


def _row(each: Compared) -> Sequence[str | Markup]:
    pair = each.paired
    return (
        each.task,
        each.measure.name,
        number(each.first.value),
        number(each.second.value),
        f"{pair.difference:+.4g} ({pair.low:+.4g} to {pair.high:+.4g})",
        f"{each.p_value:.2g}",
        f"{pair.num_items:,}",
        verdict_cell(each.verdict),
    )
