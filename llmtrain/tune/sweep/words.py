"""What a sweep prints: a line when a trial starts and when it ends, the table of results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from llmtrain.config.help import yaml_scalar
from llmtrain.system.counted import clock, counted
from llmtrain.system.visible import visible_line
from llmtrain.tune.sweep.study import Claim, TrialRecord


def setting_text(values: Mapping[str, Any]) -> str:
    """A setting as it would be given on the command line."""
    return " ".join(f"{key}={yaml_scalar(value)}" for key, value in values.items()) or "the configuration as it is"


def describe_start(claim: Claim, folder: Path) -> str:
    """The line of a trial that starts, or is taken up."""
    number = claim.record.number
    how = "taken up where it was left" if claim.is_taken_over else "starts"
    return f"trial {number} {how}: {setting_text(claim.record.values)}; its output: {folder / 'logs'}/{number:04d}*.txt"


def describe_trial(record: TrialRecord, best: TrialRecord | None, metric: str) -> str:
    """The line of a trial that has ended."""
    beginning = f"trial {record.number} {record.state}"
    took = f"{clock(record.seconds)}, {counted(record.steps, 'step')}"
    match record.state:
        case "finished":
            assert record.score is not None
            is_best = best is not None and best.number == record.number
            rest = (
                "the best so far" if is_best or best is None else f"best so far {best.score:.4f}, trial {best.number}"
            )
            return f"{beginning}: {metric} {score_text(record)}, {rest}; {took}"
        case "pruned":
            return f"{beginning}: {metric} {record.score:.4f}, worse than half of the trials at that step; {took}"
    return f"{beginning}: {record.error}"


def score_text(record: TrialRecord) -> str:
    """A score, with its spread over seeds."""
    if record.score is None:
        return ""
    if len(record.scores) < 2:
        return f"{record.score:.4f}"
    return f"{record.score:.4f} +- {statistics.stdev(record.scores):.4f} ({len(record.scores)} seeds)"


def ranked(records: Sequence[TrialRecord], maximize: bool) -> list[TrialRecord]:
    """Finished trials from the best on, then pruned, failed and running ones."""
    order = ["finished", "pruned", "failed", "running"]
    sign = -1 if maximize else 1
    return sorted(records, key=lambda r: (order.index(r.state), sign * (r.score or 0.0), r.number))


def result_table(records: Sequence[TrialRecord], metric: str, maximize: bool, limit: int = 10) -> Table:
    """The best trials, and how the others ended."""
    keys = list(dict.fromkeys(key for record in records for key in record.values))
    table = Table()
    for heading in ("trial", *keys, metric, "time", "end"):
        table.add_column(Text(visible_line(heading)))
    for record in ranked(records, maximize)[:limit]:
        values = [yaml_scalar(record.values[key]) if key in record.values else "" for key in keys]
        cells = [*values, score_text(record), clock(record.seconds), record.error or record.state]
        table.add_row(str(record.number), *(Text(visible_line(cell)) for cell in cells))
    return table


def number_text(number: float) -> str:
    """A number as a person gives it: `0.0003`, `12`, `3e-05`."""
    return f"{number:.2g}" if abs(number) < 100 else f"{number:,.0f}"
