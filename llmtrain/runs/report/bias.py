"""Bias and fairness: what `llmtrain bias` measured of a run's model, and how it compares with its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from llmtrain.eval.bias.reading import about_of, intervals_of, is_bias, readings, rows_of
from llmtrain.eval.tasks.compared import Compared, compare
from llmtrain.eval.tasks.results import Evaluation, TaskResult, read_evaluation
from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.html import Cell, details, join, note, paragraph, source, subtitle, table
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.values import number
from llmtrain.runs.report.verdict_words import verdict_cell
from llmtrain.statistics.measures import PART
from llmtrain.statistics.paired import has_scipy
from llmtrain.system.files import one_line
from llmtrain.system.run_files import BIAS_FILE, bias_base_path

LEAD = (
    "Whether the model prefers some groups of people to others. An interval that has the ideal in it is no proof of it."
)


def bias_and_fairness(records: Sequence[RunRecord]) -> Section | None:
    """The results of each run that has some, beside its configuration or its model."""
    parts = []
    for name, record in zip(short_names([record.folder for record in records]), records, strict=True):
        if (path := _results(record.folder)) is not None:
            parts += [subtitle(name)] if len(records) > 1 else []
            parts.append(_of_run(path))
    return Section("Bias and fairness", "bias", join(*parts), LEAD) if parts else None


def _results(folder: Path) -> Path | None:
    return next((path for path in (folder / BIAS_FILE, folder / "model" / BIAS_FILE) if path.is_file()), None)


def _of_run(path: Path) -> Markup:
    """A file of results; one that cannot be read is a line that says why."""
    try:
        evaluation = read_evaluation(path)
    except ValueError as error:
        return note(f"not shown: {one_line(error)}")
    tasks = [_task(result) for result in evaluation.tasks.values() if is_bias(result.task)]
    return join(*tasks, _against(evaluation, bias_base_path(path)), source(f"{path.name}: results"))


def _task(result: TaskResult) -> Markup:
    about = about_of(result.task)
    read = list(readings(result))
    head, rows = rows_of(read)
    whole = [row for row in rows if PART not in row[0]]
    parts = [row for row in rows if PART in row[0]]
    texts = (
        ("It asks", about.asks),
        ("Good", about.good),
        ("It cannot show", about.limits),
        ("Intervals", intervals_of(result, read)),
    )
    return join(
        subtitle(f"{result.task}: {result.facts.get('source', '')}"),
        table(head, whole, numbers=(1, 2, 5, 6)),
        details(f"By part: {len(parts)} more", table(head, parts, numbers=(1, 2, 5, 6))) if parts else "",
        *(paragraph(f"{word}: {text}.") for word, text in texts),
        *(note(each) for each in result.notes),
    )


def _against(evaluation: Evaluation, base: Path) -> Markup:
    """The comparison with the base, where there is one that was measured on the same items."""
    if not base.is_file() or not has_scipy():
        return Markup("")
    try:
        other = read_evaluation(base)
        found = compare(other, evaluation, common=False)
    except ValueError as error:
        return note(f"not compared with {base.name}: {one_line(error)}")
    shown = [each for each in found if PART not in each.measure.name or each.verdict != "not distinguishable"]
    head = ("measure", "base", "model", "difference", "95 % interval", "p", "the model is")
    return join(
        subtitle(f"Against {other.model.get('path', 'its base')}"),
        table(head, [_row(each) for each in shown], numbers=range(1, 6)),
        note(
            f"Better is nearer to the ideal. p-values are corrected for all {len(found)} measures and parts (Holm); of "
            "the parts, those that differ are shown."
        ),
    )


def _row(each: Compared) -> tuple[Cell, ...]:
    pair = each.paired
    return (
        f"{each.task} {each.measure.name}",
        number(each.first.value),
        number(each.second.value),
        number(pair.difference),
        f"{number(pair.low)} to {number(pair.high)}",
        f"{each.p_value:.2g}",
        verdict_cell(each.verdict),
    )
