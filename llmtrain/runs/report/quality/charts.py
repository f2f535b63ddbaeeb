"""The figures of the page: histograms over sizes that differ by factors, and the map of topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from llmtrain.data.quality.topics import Topics
from llmtrain.runs.report.figures import custom, legend
from llmtrain.runs.report.svg import SERIES, colored, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from llmtrain.system.typing import Array

BINS = 40
MOST_COLORS = 8


def log_histogram(groups: Mapping[str, Array | Sequence[float]], label: str, what: str, *, title: str) -> Markup:
    """How often sizes occur, over bins of equal factors; `what`: what is counted."""

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        values = {name: np.maximum(1.0, np.asarray(each, dtype=float)) for name, each in groups.items() if len(each)}
        low, high = (edge(np.concatenate(list(values.values()))) for edge in (np.min, np.max))
        edges = np.geomspace(low, max(high, low * 2) * 1.0001, BINS + 1).tolist()
        for (name, each), color in colored(values.items()):
            axes.hist(each, edges, label=plain(name) if len(values) > 1 else "_", color=color, alpha=0.25)
            axes.hist(each, edges, color=color, histtype="step", linewidth=1.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1e6 else f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{plain(label)} (log scale)")
        axes.set_ylabel(plain(what))
        axes.grid(visible=False, axis="x")
        legend(axes)

    return custom(paint, title=title)


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

    return custom(paint, title=title)


def topic_map(found: Topics, *, title: str) -> Markup:
    """Each text as a dot, near those with similar words; a colour per group."""

    def paint(axes: Axes) -> None:
        for topic, color in zip(range(len(found.topics)), [*SERIES] * len(found.topics), strict=False):
            chosen = found.place_topics == topic
            if not chosen.any():
                continue
            sign = "o" if topic < MOST_COLORS else "^"
            axes.plot(
                *found.places[chosen].T,
                sign,
                color=color,
                markersize=3.5,
                markeredgewidth=0,
                alpha=0.7,
                label=plain(f"{topic + 1}: {' '.join(found.topics[topic].terms[:2])}", 24),
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("near: similar words")
        axes.set_ylabel("no scale, no direction")
        axes.spines["bottom"].set_visible(False)
        legend(axes, columns=2)

    return custom(paint, title=title)
