"""The verdict on a run: one word, with its evidence and what to do, from the files of its folder.

A run may show several signs. The first of these that it shows is the word, the others are in `findings`: diverged,
overfitting, spiking, then how it ended: data exhausted, underfitting, converged or healthy. docs/verdict.md defines
each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from llmtrain.runs.folder import CHECKPOINTS, FINISHED
from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.course import Course, course_of
from llmtrain.runs.report.ending import num_steps
from llmtrain.runs.report.signs import (
    GAP_SHARE,
    LEAST_ROWS,
    REPEATS,
    Finding,
    Word,
    divergence,
    ending,
    gap,
    overfitting,
    spiking,
)
from llmtrain.system.run_files import METRICS_FILE

LEAST_EVALUATIONS = 5  # that show a trend by themselves while the run goes on


@dataclass(frozen=True)
class Verdict:
    """What to think of a run."""

    word: Word
    so_far: bool  # the run has not come to its end: it goes on, or was stopped or killed
    evidence: Sequence[str]  # sentences with numbers, each with the file and field they are from
    advice: Sequence[str]  # what to do, with the keys to set
    findings: Sequence[Finding]  # what else was seen, most important first
    stop_step: int | None = None  # of overfitting: the step whose weights are the best
    stop_checkpoint: str | None = None  # its checkpoint, in the run's folder; None: it was not kept

    @property
    def headline(self) -> str:
        """The word as a title: `Overfitting so far: stop at step 400`."""
        text = self.word[0].upper() + self.word[1:] + (" so far" if self.so_far and self.word != "no verdict" else "")
        if self.stop_step is None:
            return text
        return f"{text}: stop at step {self.stop_step}" if self.stop_step else f"{text} from the first step"


@lru_cache(maxsize=1)  # a page asks several times
def verdict_of(record: RunRecord) -> Verdict:
    """Judge a run by its rows and events. Never raises for a run that can be read."""
    course = course_of(record)
    so_far = not record.is_finished
    found = [divergence(course, record.events)]
    if found[0] is None:
        found.append(overfitting(course))
    found.append(spiking(course, record.events))
    signs = [finding for finding in found if finding is not None]
    missing = _missing(course, so_far=so_far)
    if not {"diverged", "overfitting"} & {finding.word for finding in signs} and missing is None:
        signs.append(ending(course, is_over=not so_far))
    if missing is not None and not any(finding.word == "diverged" for finding in signs):
        state = [_state(record, course)] if so_far else []
        return Verdict("no verdict", so_far, [missing, *state], [_advice(course)], signs)
    first, *others = signs
    return Verdict(
        word=first.word,
        so_far=so_far,
        evidence=[*first.evidence, *([_state(record, course)] if so_far else [])],
        advice=first.advice,
        findings=others,
        stop_step=first.stop_step,
        stop_checkpoint=_checkpoint(record, first.stop_step),
    )


def _missing(course: Course, *, so_far: bool) -> str | None:
    """Why there can be no verdict; None: there can."""
    if not len(course.held_out):
        return f"there are no evaluation rows ({METRICS_FILE}: eval_loss), and training alone does not show a verdict"
    if len(course.held_out) < 2:
        return f"there is one evaluation only, of step {course.eval_steps[0]:.0f} ({METRICS_FILE}: eval_loss)"
    if len(course.held_out) < (LEAST_EVALUATIONS if so_far else 3) and len(course.smooth) < LEAST_ROWS:
        return (
            f"there are {len(course.held_out)} evaluations and {len(course.smooth)} training rows "
            f"{'so far ' if so_far else ''}({METRICS_FILE}): too few for a trend"
        )
    found = gap(course)
    if len(course.held_out) < 3 and course.epochs >= REPEATS and found and found[0] > GAP_SHARE * course.held_out[-1]:
        return (
            f"held-out loss was measured only at the start and the end ({METRICS_FILE}: eval_loss), and the training "
            f"loss does not speak for it: after {course.epochs:.3g} passes over the data it is far below"
        )
    return None


def _advice(course: Course) -> str:
    if not len(course.held_out):
        return "hold data out: `data.eval_fraction=0.05`, or `data.eval` with a file of its own"
    return f"evaluate more often: `eval.every={max(1, course.last_step // 10)}`"


def _state(record: RunRecord, course: Course) -> str:
    """How far a run is that has not come to its end."""
    planned = num_steps(record)
    steps = f"{course.last_step} of {planned}" if planned else f"{course.last_step}"
    last = record.events[-1] if record.events else {}
    ended = f", {last['event']}" if last.get("event") in ("interrupted", "failed") else ""
    return f"this is as of step {steps}{ended}: the run has not come to its end (no {FINISHED})"


def _checkpoint(record: RunRecord, step: int | None) -> str | None:
    """The folder of a step's checkpoint, relative to the run's, if it was kept."""
    name = f"{CHECKPOINTS}/step-{step or 0:08d}"
    return name if step is not None and (record.folder / name).is_dir() else None
