"""The part of a model card that compares the model with the one it was trained from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmtrain.models.folders.markdown import cell, plain
from llmtrain.system.visible import visible_line


@dataclass(frozen=True)
class Change:
    """One measure of both models; NaN and "" where their difference is not known."""

    what: str
    before: float
    after: float
    difference: float
    low: float  # of its 95 % interval
    high: float
    num_items: int
    verdict: str  # of the trained model

    @property
    def interval(self) -> str:
        """The difference with its interval, in words."""
        if math.isnan(self.difference):
            return ""
        if not (self.difference or self.low or self.high):
            return "none"
        shown = f"{self.difference:+.3g}"
        return shown if math.isnan(self.low) else f"{shown} ({self.low:+.3g} to {self.high:+.3g})"


@dataclass(frozen=True)
class Changes:
    """What was measured before and after training on the same things."""

    rows: Sequence[Change]
    meanings: Sequence[str]  # what each of the measures is, and what it cannot show
    notes: Sequence[str]  # what is missing, and why


def change_lines(changes: Changes) -> Iterator[str]:
    """The part as Markdown."""
    yield "### Before and after training"
    yield ""
    if changes.rows:
        yield "| measured | before | after | difference, 95 % interval | items | after training it is |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for row in changes.rows:
            cells = (
                cell(plain(row.what)),
                f"{row.before:.4g}",
                f"{row.after:.4g}",
                row.interval,
                f"{row.num_items:,}",
                row.verdict,
            )
            yield f"| {' | '.join(cells)} |"
        yield ""
    for line in (*changes.meanings, *changes.notes):
        yield f"- {visible_line(line)}"
