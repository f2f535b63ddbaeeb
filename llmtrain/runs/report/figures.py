"""The kinds of figure that sections draw: lines over steps, bars, histograms, points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from numpy import ndarray

from llmtrain.runs.report.curves import Curve, evenly, thinned
from llmtrain.runs.report.svg import GRID, INK, SERIES, colored, draw, draw_hero, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG_SPAN = 50.0
"""A quantity whose largest value is so many times its smallest is drawn on a logarithmic axis, if it may be."""
MOST_DOTS = 60
"""A curve of more points is drawn without dots."""
BINS = 30  # of a histogram
MOST_MARKS = 100
"""Of more marks of a kind, so many are drawn."""
LineStyle = Literal["solid", "thin", "dashed", "faint", "marked", "points"]
"""`marked`: with a dot at each point; `points`: dots alone; `faint`: each row, with a mean over it."""


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn."""

    label: str  # "": not in the legend
    curve: Curve
    color: str = SERIES[0]
    style: LineStyle = "solid"


@dataclass(frozen=True)
class Mark:
    """Steps at which something happened."""

    label: str
    steps: Sequence[float]
    color: str
    sign: Literal["line", "triangle", "cross", "dot"] = "line"


@dataclass(frozen=True)
class Scale:
    """An axis: what it shows, with its unit."""

    label: str
    may_be_log: bool = False
    is_share: bool = False  # a part of one, written in percent
    from_zero: bool = False


def line_chart(
    lines: Sequence[Line],
    x: Scale,
    y: Scale,
    *,
    title: str,
    marks: Sequence[Mark] = (),
    second_x: tuple[str, float] | None = None,
    hero: bool = False,
    has_legend: bool = True,
) -> Markup:
    """Curves over one axis; many points are thinned so that every extreme stays.

    `second_x`: label and units of x per unit of a second scale at the top, such as steps per epoch.
    """

    def paint(axes: Axes) -> None:
        for line in lines:
            _paint_line(axes, line)
        _scale(axes, x, y, np.concatenate([line.curve.y for line in lines]))
        for mark in marks:
            _paint_mark(axes, mark)
        if second_x is not None:
            label, per = second_x
            top = axes.secondary_xaxis("top", functions=_multiples(per))
            top.set_xlabel(plain(label))
            top.spines["top"].set_visible(False)
        if has_legend:
            legend(axes)

    return draw_hero(paint, title) if hero else draw(paint, title)


def bar_chart(values: Mapping[str, float], x: Scale, *, title: str) -> Markup:
    """Horizontal bars with their values, the first at the top."""

    def paint(axes: Axes) -> None:
        names, widths = [plain(name, 32) for name in values], list(values.values())
        bars = axes.barh(range(len(widths)), widths, color=SERIES[0], height=0.7)
        axes.set_yticks(range(len(names)), names, color=INK)
        axes.invert_yaxis()
        axes.bar_label(bars, [f"{number:.3g}" for number in widths], padding=4, color=INK)
        axes.set_xlabel(plain(x.label))
        axes.margins(x=0.15)
        axes.grid(visible=False, axis="y")

    return draw(paint, title)


def histogram(groups: Mapping[str, Sequence[float]], x: Scale, *, title: str) -> Markup:
    """How often values occur, of one or several groups over the same bins; as wide as the page."""

    def paint(axes: Axes) -> None:
        finite = {name: [value for value in each if math.isfinite(value)] for name, each in groups.items()}
        edges = np.histogram_bin_edges([value for each in finite.values() for value in each] or [0.0], BINS).tolist()
        for (name, each), color in colored(finite.items()):
            axes.hist(each, edges, label=plain(name), color=color, alpha=0.25)
            axes.hist(each, edges, color=color, histtype="step", linewidth=1.5)
        axes.set_xlabel(plain(x.label))
        axes.set_ylabel("count")
        legend(axes)

    return draw_hero(paint, title)


def scatter(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: Scale, y: Scale, *, title: str) -> Markup:
    """Points of one or several groups."""

    def paint(axes: Axes) -> None:
        for (name, (xs, ys)), color in colored(groups.items()):
            axes.plot(xs, ys, "o", markersize=4, markeredgewidth=0, alpha=0.6, color=color, label=plain(name))
        _scale(axes, x, y, np.concatenate([np.asarray(ys, dtype=float) for _, ys in groups.values()]))
        legend(axes)

    return draw(paint, title)


def custom(paint: Callable[[Axes], None], *, title: str) -> Markup:
    """A figure of a kind that is drawn once: `paint` draws on matplotlib's axes in colours of `svg`."""
    return draw(paint, title)


def _paint_line(axes: Axes, line: Line) -> None:
    curve = thinned(line.curve)
    dashes = {"dashed": (0, (4, 2)), "points": "none"}
    is_marked = len(curve.x) == 1 or line.style in ("marked", "points")
    axes.plot(
        curve.x,
        curve.y,
        linestyle=dashes.get(line.style, "-"),
        marker="o" if is_marked and len(curve.x) <= MOST_DOTS else None,
        markersize=4.5,
        color=line.color,
        linewidth=1 if line.style in ("faint", "thin") else 2,
        alpha={"faint": 0.3, "thin": 0.6}.get(line.style, 1.0),
        label=plain(line.label) or None,
    )


def _paint_mark(axes: Axes, mark: Mark) -> None:
    label = plain(mark.label)
    steps = [mark.steps[place] for place in evenly(len(mark.steps), MOST_MARKS)]
    for step in steps if mark.sign == "line" else ():
        axes.axvline(step, color=mark.color, linewidth=1, linestyle=(0, (2, 2)), label=label)
        label = "_"
    if mark.sign != "line" and steps:
        height, sign = {"triangle": (0.02, "^"), "cross": (0.06, "x"), "dot": (0.1, "o")}[mark.sign]
        axes.plot(
            steps,
            [height] * len(steps),
            sign,
            transform=axes.get_xaxis_transform(),
            color=mark.color,
            markersize=7,
            label=label,
            clip_on=False,
        )


def _scale(axes: Axes, x: Scale, y: Scale, values: Float[ndarray, " values"]) -> None:
    from matplotlib.ticker import (
        EngFormatter,
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        PercentFormatter,
    )

    axes.set_xlabel(plain(x.label))
    axes.set_ylabel(plain(y.label))
    finite = values[np.isfinite(values)]
    lowest, highest = finite.min(initial=math.inf), finite.max(initial=-math.inf)
    if y.may_be_log and 0 < lowest < highest / LOG_SPAN:  # a logarithmic axis hides what is not above zero
        axes.set_yscale("log")
        axes.set_ylabel(f"{plain(y.label)} (log scale)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        if highest >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    if y.from_zero:
        axes.set_ylim(bottom=0)
    if y.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if x.is_share:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    is_counted = "step" in x.label or x.label == "trial"
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=is_counted, min_n_ticks=1 if is_counted else 2))
    axes.grid(visible=False, axis="x")
    axes.spines["bottom"].set_color(GRID)


def _multiples(unit: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """A number of steps in multiples of a unit, and back."""
    return lambda steps: steps / unit, lambda multiples: multiples * unit


def legend(axes: Axes, columns: int = 3) -> None:
    """The names of what is drawn, above the axes; nothing if nothing is named."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.4)
