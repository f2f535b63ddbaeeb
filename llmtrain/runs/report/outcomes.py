"""Several runs side by side: how each ended and what it reached."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.ending import ending, last_step
from llmtrain.runs.report.headlines import Headline, headlines_of
from llmtrain.runs.report.html import join, note, source, table
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.story import kind_of
from llmtrain.runs.report.values import count, duration, is_finite
from llmtrain.runs.report.verdict import verdict_of
from llmtrain.runs.rows import Row


def outcomes(records: Sequence[RunRecord]) -> Markup:
    """A table with a row for each run: a column for each measure of one recipe, one for the first of several."""
    is_mixed = len({record.recipe for record in records}) > 1
    shown = dict.fromkeys(
        headline for record in records for headline in headlines_of(record) if headline.field in record.eval_rows.names
    )
    kinds = ("kind",) if is_mixed else ()
    measures = ("held out, before and after",) if is_mixed else tuple(headline.label for headline in shown)
    head = ("run", *kinds, "how it ended", "verdict", "steps", "tokens", "time", *measures)
    rows = []
    for name, record in zip(short_names([record.folder for record in records]), records, strict=True):
        last = record.train_rows[-1] if record.train_rows else {}
        tokens, elapsed = last.get("tokens"), last.get("elapsed_seconds")
        final = record.eval_rows[-1] if record.eval_rows else {}
        rows.append(
            (
                name,
                *([kind_of(record)] if kinds else ()),
                ending(record).how,
                verdict_of(record).headline,
                f"{last_step(record):,}",
                count(tokens) if is_finite(tokens) else "",
                duration(elapsed) if is_finite(elapsed) else "",
                *([_before_and_after(record)] if is_mixed else [_written(headline, final) for headline in shown]),
            )
        )
    parts = [table(head, rows, numbers=range(4, 7) if is_mixed else range(3, len(head)))]
    if is_mixed:
        parts.append(note("These runs are of several recipes, whose losses do not compare."))
    parts.append(source("metrics.jsonl: last row of each kind", "events.jsonl"))
    return join(*parts)


def _before_and_after(record: RunRecord) -> str:
    """`held-out loss, nats per token: 6.093 to 3.984`; empty without evaluations."""
    headline = next((each for each in headlines_of(record) if each.field in record.eval_rows.names), None)
    if headline is None:
        return ""
    first, last = (_written(headline, record.eval_rows[place]) for place in (0, -1))
    return f"{headline.label}: {first} to {last}" if len(record.eval_rows) > 1 else f"{headline.label}: {last}"


def _written(headline: Headline, row: Row) -> str:
    value = row.get(headline.field)
    return headline.written(value) if is_finite(value) else ""
