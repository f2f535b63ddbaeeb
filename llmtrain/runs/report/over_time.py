"""Figures of held-out measures over steps, with their 95 % intervals as bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.curves import column, evenly, thinned
from llmtrain.runs.report.figures import MOST_DOTS, custom, legend
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.svg import GRID, MUTED, colored, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_EVALUATIONS = 400
"""Of more evaluations, so many are drawn."""


def measure_figure(
    records: Sequence[RunRecord],
    field: str,
    label: str,
    *,
    is_share: bool = False,
    chance: float | None = None,
    training: str | None = None,
) -> Markup | None:
    """A field of evaluation rows over steps, of each run; `training`: the field of training rows that matches it.

    None if no run has the field.
    """
    names = short_names([record.folder for record in records])
    found = [(record, name, column(record.eval_rows, field)) for record, name in zip(records, names, strict=True)]
    found = [(record, name, curve) for record, name, curve in found if len(curve.x)]
    if not found:
        return None

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        for (record, name, curve), color in colored(found):
            if training is not None:
                trained = thinned(column(record.train_rows, training))
                shown = "training" if len(found) == 1 else None
                axes.plot(trained.x, trained.y, color=color, linewidth=1, alpha=0.4, label=shown)
            low, high = (column(record.eval_rows, f"{field}_{end}") for end in ("low", "high"))
            kept = evenly(len(curve.x), MOST_EVALUATIONS)
            has_interval = len(low.x) == len(high.x) == len(curve.x)
            if has_interval:
                axes.fill_between(curve.x[kept], low.y[kept], high.y[kept], color=color, alpha=0.15, linewidth=0)
                if len(kept) == 1:  # a band over one step has no width
                    axes.vlines(curve.x, low.y, high.y, color=color, linewidth=1.5, alpha=0.5)
            shown = f"held out{', with 95 % interval' if has_interval else ''}" if len(found) == 1 else plain(name, 32)
            style = "o-" if len(kept) <= MOST_DOTS else "-"
            axes.plot(curve.x[kept], curve.y[kept], style, markersize=4, color=color, label=shown)
        if chance is not None:
            axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (4, 2)), label="guessing")
        axes.set_xlabel("step")
        axes.set_ylabel(plain(label))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        steps = {step for _, _, curve in found for step in curve.x.tolist()}
        if len(steps) == 1:
            axes.set_xticks(sorted(steps))
        if is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(visible=False, axis="x")
        axes.spines["bottom"].set_color(GRID)
        legend(axes)

    return custom(paint, title=f"{label} over steps")
