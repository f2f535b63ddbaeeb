"""What happened to a run on its way: restarts, skipped steps, roll-backs, losses that were not finite, slow ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.curves import column
from llmtrain.runs.report.figures import Mark
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.svg import BAD, MUTED
from llmtrain.runs.report.values import counted, is_finite

SHOWN_STEPS = 8


def marks_of(record: RunRecord) -> list[Mark]:
    """The marks of a run's charts, each kind once in the legend."""
    kinds = (
        Mark("restarted", restarts(record), MUTED, "line"),
        Mark("loss spike, rolled back", rolled_back(record), BAD, "triangle"),
        Mark("step skipped: not finite", skipped(record), BAD, "cross"),
        Mark("a slow rank", slow(record), MUTED, "dot"),
    )
    return [mark for mark in kinds if mark.steps]


def happenings(records: Sequence[RunRecord]) -> Iterator[str]:
    """A sentence for each kind of event of each run."""
    names = short_names([record.folder for record in records])
    for name, record in zip(names, records, strict=True):
        parts = [
            (restarts(record), "restart", "restarts"),
            (slow(record), "report of a slow rank", "reports of a slow rank"),
            (rolled_back(record), "roll-back after a loss spike", "roll-backs after loss spikes"),
            (
                skipped(record),
                "skipped step with a loss or gradient that was not finite",
                "skipped steps with losses or gradients that were not finite",
            ),
        ]
        lines = [f"{counted(len(steps), one, many)} ({_named(steps)})" for steps, one, many in parts if steps]
        if lines:
            yield f"{f'{name}: ' if len(records) > 1 else ''}{'; '.join(lines)}. From events.jsonl."


def restarts(record: RunRecord) -> list[int]:
    """Steps that a later launch continued from."""
    return _steps(record, "resumed")


def rolled_back(record: RunRecord) -> list[int]:
    """Steps whose loss was a spike, from which the run went back to a checkpoint."""
    return _steps(record, "rolled_back")


def slow(record: RunRecord) -> list[int]:
    """Steps by which one rank had long been slower than all others."""
    return _steps(record, "slow")


def skipped(record: RunRecord) -> list[int]:
    """Steps that were not applied; of runs without events those whose rows count one more, or lack a loss."""
    steps = set(_steps(record, "skipped"))
    if not record.events:
        counts = column(record.train_rows, "nonfinite_steps")
        steps |= set(counts.x[np.diff(counts.y, prepend=0) > 0].astype(int).tolist())
    losses = column(record.train_rows, "loss")
    return sorted(steps | set(losses.x[np.isnan(losses.y)].astype(int).tolist()))


def _steps(record: RunRecord, event: str) -> list[int]:
    return [int(each["step"]) for each in record.events if each.get("event") == event and is_finite(each.get("step"))]


def _named(steps: Sequence[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:SHOWN_STEPS])
    more = f" and {len(steps) - SHOWN_STEPS:,} more" if len(steps) > SHOWN_STEPS else ""
    return f"{'step' if len(steps) == 1 else 'steps'} {shown}{more}"
