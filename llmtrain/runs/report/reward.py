"""The section of reward models: does it score the better of two answers higher, how surely, and why?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.evaluated import Evaluated, last_evaluation
from llmtrain.runs.report.html import grid, join, note, paragraph
from llmtrain.runs.report.ranked import (
    accuracy_figure,
    by_source,
    length_figures,
    length_table,
    length_words,
    pair_figures,
    roc_figures,
    verdict,
)
from llmtrain.runs.report.section import Section

SCORE = "score"


def reward_model(records: Sequence[RunRecord]) -> Section | None:
    """Accuracy over steps and ROC of every run; of one run also confusion, calibration, margins and length bias."""
    records = [record for record in records if record.recipe == "reward"]
    if not records:
        return None
    caption = "Share of held-out pairs whose chosen answer scores higher than the rejected one; a tie counts half."
    accuracy = list(accuracy_figure(records, "pairs ranked right", caption))
    found = [(record, each) for record in records if (each := last_evaluation(record, "accuracy", "roc")) is not None]
    if not found:
        why = "No pairs were held out and evaluated: there is no ROC."
        if any(record.evaluations for record in records):
            why = "An older version of llmtrain wrote the evaluations of this run: they hold no ROC and no calibration."
        return Section("Reward model", "reward-model", join(note(why), grid(accuracy)))
    figures = [*accuracy, *roc_figures(found, "chosen", "rejected")]
    parts = [grid(figures)] if len(records) > 1 else list(_whole(figures, *found[0]))
    return Section("Reward model", "reward-model", join(*parts), "Does it score the better of two answers higher?")


def _whole(figures: Sequence[Markup], record: RunRecord, evaluated: Evaluated) -> Iterator[Markup]:
    yield paragraph(f"{verdict(evaluated)} {length_words(evaluated.report['decisions'])}")
    yield grid([*figures, *pair_figures(evaluated, SCORE), *length_figures(evaluated, SCORE)])
    yield from length_table(evaluated)
    yield from by_source(record, evaluated)
