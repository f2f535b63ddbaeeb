"""The section of before and after: both models on the same things, and what of their difference is more than noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from llmtrain.models.folders.card_before_after import Changes
from llmtrain.runs.before_after import changes_of
from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.html import join, note, source, subtitle, table
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.values import number
from llmtrain.runs.report.verdict_words import verdict_cell
from llmtrain.system.run_files import EVALUATIONS, after_path, before_path

HEAD = ("measured", "before", "after", "difference, 95 % interval", "items", "after training it is")


def before_and_after(records: Sequence[RunRecord]) -> Section | None:
    """A table for each run that measured both; None if none did."""
    names = short_names([record.folder for record in records])
    named = zip(names, records, strict=True)
    found = [(name, changes) for name, record in named if (changes := changes_of(record.folder))]
    if not found:
        return None
    parts = [part for name, changes in found for part in _of_run(name if len(records) > 1 else "", changes)]
    lead = "What became better, what worse, and what cannot be known from so few items?"
    return Section("Before and after training", "before-and-after", join(*parts), lead)


def _of_run(name: str, changes: Changes) -> Iterator[Markup]:
    if name:
        yield subtitle(name)
    if changes.rows:
        cells = [
            (
                row.what,
                number(row.before),
                number(row.after),
                row.interval,
                f"{row.num_items:,}",
                verdict_cell(row.verdict),
            )
            for row in changes.rows
        ]
        yield table(HEAD, cells, numbers=(1, 2, 3, 4))
        yield source(*(f"{EVALUATIONS}/{name_of(Path()).name}" for name_of in (before_path, after_path)))
    for line in (*changes.meanings, *changes.notes):
        yield note(line)
