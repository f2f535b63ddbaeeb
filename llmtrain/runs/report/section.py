"""A section of the report: a title and HTML that is safe to put into the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from llmtrain.runs.record import RunRecord


@dataclass(frozen=True)
class Section:
    """One section of the page. What comes from a run is escaped in `body`: build it with `report/html.py`."""

    title: str
    anchor: str  # of the table of contents: letters and dashes
    body: Markup
    lead: str = ""  # a sentence under the title: what is to be seen here


SectionOf = Callable[[Sequence[RunRecord]], Section | None]
"""What makes a section of one or several runs; None: these runs have nothing that it shows."""
