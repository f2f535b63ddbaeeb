"""The figures of the page: histograms over sizes that differ by factors, and the map of topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from llmtrain.data.quality.topics import Topics
from llmtrain.runs.report.figures import legend
from llmtrain.runs.report.svg import INK, SERIES, colored, draw, draw_hero, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from llmtrain.system.typing import Array

BINS = 40
SHORT_DECADES = 3
"""Of an axis that spans less, 2 and 5 are labelled too: powers of ten alone may be one label, or none."""


def log_histogram(
    groups: Mapping[str, Array | Sequence[float]], label: str, what: str, *, title: str, is_alone: bool = True
) -> Markup:
    """How often sizes occur, over bins of equal factors; `what`: what is counted; `is_alone`: as wide as the page."""

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        values = {name: np.maximum(1.0, np.asarray(each, dtype=float)) for name, each in groups.items() if len(each)}
        low, high = (edge(np.concatenate(list(values.values()))) for edge in (np.min, np.max))
        edges = np.geomspace(low, max(high, low * 2) * 1.0001, BINS + 1).tolist()
        for (name, each), color in colored(values.items()):
            axes.hist(each, edges, label=plain(name) if len(values) > 1 else "_", color=color, alpha=0.25)
            axes.hist(each, edges, color=color, histtype="step", linewidth=1.5)
        axes.set_xscale("log")
        decades = np.log10(edges[-1] / edges[0])
        axes.xaxis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0) if decades < SHORT_DECADES else (1.0,), numticks=7)
        )
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:g} M")
        )
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{plain(label)} (log scale)")
        axes.set_ylabel(plain(what))
        axes.grid(visible=False, axis="x")
        legend(axes)

    return draw_hero(paint, title) if is_alone else draw(paint, title)


def balance_histogram(differences: Sequence[float], *, title: str) -> Markup:
    """How much longer chosen answers are, by factors of two."""

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter

        edges = np.linspace(-4, 4, 33).tolist()
        axes.hist(np.clip(differences, -4, 4), edges, color=SERIES[0], alpha=0.35)
        axes.axvline(0, color=SERIES[1], linewidth=1.5)
        axes.set_xlabel("length of the chosen over that of the rejected answer")
        axes.set_ylabel("pairs")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{2.0**value:g}x"))
        axes.grid(visible=False, axis="x")

    return draw_hero(paint, title)


def topic_map(found: Topics, *, title: str) -> Markup:
    """Each text as a dot, near those with similar words; a colour and the number of its group."""

    def paint(axes: Axes) -> None:
        for topic in range(len(found.topics)):
            own = found.places[found.place_topics == topic]
            if not len(own):
                continue
            color, sign = SERIES[topic % len(SERIES)], "o" if topic < len(SERIES) else "^"
            axes.plot(*own.T, sign, color=color, markersize=4, markeredgewidth=0, alpha=0.6)
            middle = own[np.linalg.norm(own - np.median(own, axis=0), axis=1).argmin()]
            axes.annotate(str(topic + 1), middle, color=INK, fontsize=15, fontweight="bold", ha="center", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("near: similar words")
        axes.set_ylabel("no scale")
        axes.spines["bottom"].set_visible(False)

    return draw_hero(paint, title)
