"""The top of the report: what was run, and its numbers before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.headlines import Headline, headlines_of
from llmtrain.runs.report.html import details, join, note, paragraph, tile, tiles
from llmtrain.runs.report.judgement import judgement
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.outcomes import outcomes
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.story import story
from llmtrain.runs.report.values import is_finite
from llmtrain.runs.rows import Row

KEPT_TILES = 4


def what_was_run(records: Sequence[RunRecord]) -> Section:
    """One paragraph for each run, with its held-out numbers before and after."""
    problems = [note(f"{record.folder.name}: {problem}.") for record in records for problem in record.problems]
    if len(records) == 1:
        body = join(paragraph(story(records[0])), *problems, judgement(records[0]), before_and_after(records[0]))
    else:
        names = short_names([record.folder for record in records])
        each = (
            paragraph(Markup("<strong>{}</strong>: {}").format(name, story(record)))
            for name, record in zip(names, records, strict=True)
        )
        body = join(outcomes(records), *problems, details("Each run in a paragraph", join(*each)))
    return Section("What was run", "what", body)


def before_and_after(record: RunRecord) -> Markup:
    """Tiles of the headlines' last values, with the first ones and the best."""
    made = list(_tiles(record))[:KEPT_TILES]
    if not made:
        return note("No held-out evaluation is on record, so there is no before and after.")
    return tiles(made)


def _tiles(record: RunRecord) -> Iterator[Markup]:
    for headline in headlines_of(record):
        rows = [row for row in record.eval_rows if headline.field in row]
        if not rows:
            continue
        first, last = rows[0], rows[-1]
        value = headline.written(_value(last[headline.field]))
        remark = _when(first["step"])
        if first is not last:
            remark += f": {headline.written(_value(first[headline.field]))}"
        yield tile(
            headline.label,
            value,
            join(remark, _interval(last, headline), _best(rows, headline)),
            f"metrics.jsonl: {headline.field}, step {last['step']}",
        )


def _when(step: int) -> str:
    return "before training" if step == 0 else f"at step {step:,}"


def _interval(last: Row, headline: Headline) -> Markup:
    """The 95 % interval of the last value, if the evaluation gives one."""
    low, high = (last.get(f"{headline.field}_{end}") for end in ("low", "high"))
    if not (is_finite(low) and is_finite(high)):
        return Markup("")
    return Markup("<br>95 % interval {} to {}").format(headline.written(low), headline.written(high))


def _best(rows: Sequence[Row], headline: Headline) -> Markup:
    """The best value and its step, if it is not the last one."""
    rows = [row for row in rows if is_finite(row[headline.field])]
    if len(rows) < 2 or headline.lower_is_better is None:
        return Markup("")
    choose = min if headline.lower_is_better else max
    best = choose(rows, key=lambda row: float(row[headline.field]))
    if best[headline.field] == rows[-1][headline.field]:
        return Markup("")
    return Markup("<br>best: {} {}").format(headline.written(best[headline.field]), _when(best["step"]))


def _value(value: float | None) -> float:
    return math.nan if value is None else value
