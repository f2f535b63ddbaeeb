"""The verdict of a comparison as a cell: coloured where it is good or bad."""

from __future__ import annotations

from markupsafe import Markup

COLORS = {"better": "good", "worse": "bad", "not distinguishable": "muted"}


def verdict_cell(verdict: str) -> Markup:
    """The verdict's word in its colour."""
    color = COLORS.get(verdict)
    if color is None:
        return Markup("{}").format(verdict)
    return Markup('<span style="color: var(--{})">{}</span>').format(color, verdict)
