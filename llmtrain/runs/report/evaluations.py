"""The table of evaluations on held-out data."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.curves import evenly
from llmtrain.runs.report.html import details, join, note, source, subtitle, table
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.values import number
from llmtrain.runs.rows import Rows

SHOWN_ROWS = 12
MOST_ROWS = 200


def evaluations(records: Sequence[RunRecord]) -> Section | None:
    """What each run's evaluations measured."""
    names = short_names([record.folder for record in records])
    parts = [
        join(subtitle(name) if len(records) > 1 else "", _table(record.eval_rows))
        for name, record in zip(names, records, strict=True)
        if record.eval_rows
    ]
    if not parts:
        return None
    body = join(*parts, source("metrics.jsonl: rows with eval_loss"))
    return Section("Evaluations", "evaluations", body, "On data that is never trained on; step 0 is before training.")


def _table(rows: Rows) -> Markup:
    whole = _rows(rows, evenly(len(rows), MOST_ROWS))
    if len(rows) <= SHOWN_ROWS:
        return whole
    few = join(_rows(rows, evenly(len(rows), SHOWN_ROWS)), note(f"{SHOWN_ROWS} of {len(rows):,} evaluations."))
    which = "All" if len(rows) <= MOST_ROWS else f"{MOST_ROWS} of"
    return join(few, details(f"{which} {len(rows):,} evaluations", whole))


def _rows(rows: Rows, which: Sequence[int]) -> Markup:
    fields = [name for name in rows.names if name.startswith("eval_")]
    head = ("step", *(name.removeprefix("eval_").replace("_", " ") for name in fields))
    cells = []
    for index in which:
        row = rows[index]
        cells.append((f"{row['step']:,}", *(number(row[name]) if name in row else "" for name in fields)))
    return table(head, cells, numbers=range(len(head)))
