"""What training changed of a run's model, read from its folder: for the model card and the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from llmtrain.eval.before_after.measure import NOT_MEASURED
from llmtrain.eval.before_after.words import MEANINGS, label_of
from llmtrain.eval.tasks.compared import compare
from llmtrain.eval.tasks.results import Evaluation, estimate, read_evaluation
from llmtrain.models.folders.card_before_after import Change, Changes
from llmtrain.statistics.paired import has_scipy
from llmtrain.system.run_files import after_path, before_path


def changes_of(folder: Path, step: int | None = None) -> Changes | None:
    """What a run measured before and after training; None if it did not, or not at this step, if one is given.

    Without SciPy there are no intervals, and a note says so. Raises ValueError for files that cannot be read.
    """
    if not (before_path(folder).is_file() and after_path(folder).is_file()):
        return None
    before, after = read_evaluation(before_path(folder)), read_evaluation(after_path(folder))
    if step is not None and after.model.get("step") != step:
        return None
    if before.model.get("asked") != after.model.get("asked"):
        return None  # another configuration measured other things
    missing = {**before.model.get(NOT_MEASURED, {}), **after.model.get(NOT_MEASURED, {})}
    notes = [f"Not measured: {name.replace('_', ' ')} ({why})." for name, why in missing.items()]
    notes += [f"{name}: {note}" for each in (before, after) for name, task in each.tasks.items() for note in task.notes]
    rows = list(_compared(before, after) if has_scipy() else _values(before, after))
    if not has_scipy():
        notes.append("Intervals and verdicts need SciPy: pip install 'llmtrain[measure]'.")
    elif rows:
        notes.append(
            "Both models did the same items; intervals are of the paired bootstrap, each for itself, and verdicts of "
            f"paired tests, corrected for {len(rows)} comparisons (Holm). One run: another seed may differ by more."
        )
    measured = {each.name for task in after.tasks.values() for each in task.measures}
    return Changes(rows, [words for name, words in MEANINGS.items() if name in measured], notes)


def _compared(before: Evaluation, after: Evaluation) -> Iterator[Change]:
    shared = [name for name in before.tasks if name in after.tasks]
    first, second = (Evaluation(each.model, {name: each.tasks[name] for name in shared}) for each in (before, after))
    for each in compare(first, second, common=True) if shared else ():
        pair, what = each.paired, label_of(each.task, each.measure.name)
        values = (each.first.value, each.second.value, pair.difference, pair.low, pair.high)
        yield Change(what, *values, pair.num_items, each.verdict)


def _values(before: Evaluation, after: Evaluation) -> Iterator[Change]:
    """Both values, without what needs SciPy."""
    for name, result in before.tasks.items():
        other = after.tasks.get(name)
        names = set() if other is None else {measure.name for measure in other.measures}
        for measure in result.measures:
            if other is not None and measure.name in names:
                first, second = (estimate(each.items, measure).value for each in (result, other))
                what, unknown = label_of(name, measure.name), math.nan
                yield Change(what, first, second, unknown, unknown, unknown, len(result.items), "")
