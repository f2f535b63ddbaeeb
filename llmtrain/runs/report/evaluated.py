"""Which evaluation of a run a section shows, and where its numbers are from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain.runs.record import RunRecord
from llmtrain.system.run_files import EVALUATIONS


@dataclass(frozen=True)
class Evaluated:
    """The report of an evaluation."""

    step: int
    report: Mapping[str, Any]

    def place(self, *fields: str) -> str:
        """The file and the fields, as a caption names them."""
        return f"{EVALUATIONS}/step-{self.step:08d}.json: {', '.join(fields)}"


def last_evaluation(record: RunRecord, *needed: str) -> Evaluated | None:
    """The evaluation of the step that the run exported, or else the last one; None if there is none.

    One that lacks a field of `needed` is none: an older version wrote it.
    """
    exported = [step for step in record.evaluations if step == record.reward_card.get("step")]
    steps = exported or sorted(record.evaluations)[-1:]
    found = [Evaluated(step, record.evaluations[step]) for step in steps]
    return next((each for each in found if all(name in each.report for name in needed)), None)


def first_evaluation(record: RunRecord) -> Evaluated | None:
    """The first evaluation, before training if it is of step 0."""
    steps = sorted(record.evaluations)[:1]
    return next((Evaluated(step, record.evaluations[step]) for step in steps), None)
