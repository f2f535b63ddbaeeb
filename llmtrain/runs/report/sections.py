"""The sections of a report, in the order in which a person reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.answers import samples
from llmtrain.runs.report.before_after import before_and_after
from llmtrain.runs.report.bias import bias_and_fairness
from llmtrain.runs.report.evaluations import evaluations
from llmtrain.runs.report.flow import ledger_flow
from llmtrain.runs.report.html import note
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.policy import policy
from llmtrain.runs.report.preference import preferences
from llmtrain.runs.report.reward import reward_model
from llmtrain.runs.report.section import Section, SectionOf
from llmtrain.runs.report.settings import configuration, surroundings
from llmtrain.runs.report.summary import what_was_run
from llmtrain.runs.report.tasks import tasks
from llmtrain.runs.report.training import training_curves
from llmtrain.system.files import one_line

SECTIONS: Sequence[SectionOf] = (
    what_was_run,
    reward_model,
    preferences,
    policy,
    before_and_after,
    tasks,
    training_curves,
    samples,
    evaluations,
    bias_and_fairness,
    ledger_flow,
    configuration,
    surroundings,
)
RECIPES = {"reward-model": "reward", "preferences": "preference", "policy": "policy"}
"""Anchor of a section that shows runs of one recipe only -> that recipe."""


def sections_of(records: Sequence[RunRecord], warn: Callable[[str], None]) -> Iterator[Section]:
    """Those that have something to show of these runs.

    A section that fails, on a file of a form that no version wrote, leaves the others: the page and a warning say so.
    """
    for section_of in SECTIONS:
        try:
            section = section_of(records)
        except Exception as error:
            what = f"{section_of.__name__.replace('_', ' ')}: not shown ({type(error).__name__}: {one_line(error)})"
            warn(f"warning: report: {what}")
            section = Section("Not shown", section_of.__name__.replace("_", "-"), note(what))
        if section is not None:
            yield _of_some_runs(section, records)


def _of_some_runs(section: Section, records: Sequence[RunRecord]) -> Section:
    """With the names of the runs that it shows in its lead, where the page has others too."""
    recipe = RECIPES.get(section.anchor)
    names = short_names([record.folder for record in records])
    shown = [name for name, record in zip(names, records, strict=True) if record.recipe == recipe]
    if not 0 < len(shown) < len(records):
        return section
    return replace(section, lead=f"{section.lead} Shown: {', '.join(shown)}.".strip())
