"""Figures of how well scores separate good answers from bad ones: of a reward model, and of implied rewards.

Each takes a part of `evaluations/step-N.json` as `eval/pairs.py` and `eval/kto.py` write it. A number there is null if
it was not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from llmtrain.runs.report.figures import Scale, custom, legend, scatter
from llmtrain.runs.report.html import table
from llmtrain.runs.report.svg import GRID, INK, MUTED, SERIES, colored, plain
from llmtrain.runs.report.values import number, percent
from llmtrain.statistics.intervals import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Part = Mapping[str, Any]

DECISIONS = {"chosen_longer": "chosen is longer", "same_length": "same length", "rejected_longer": "rejected is longer"}


def roc_figure(curves: Mapping[str, Part], good: str, bad: str) -> Markup:
    """ROC curves by name, with the diagonal of a model that guesses."""

    def paint(axes: Axes) -> None:
        for (name, curve), color in colored(curves.items()):
            style = "-" if name == next(iter(curves)) else (0, (3, 1))
            axes.plot(
                curve["false_positive_rates"],
                curve["true_positive_rates"],
                color=color,
                label=plain(name, 32),
                linestyle=style,
            )
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 2)), label="guessing")
        share_axes(axes, f"{bad} answers called good", f"{good} answers called good")
        axes.set_aspect("equal")
        legend(axes)

    return custom(paint, title=f"ROC: share of {good} against share of {bad} answers called good")


def confusion_figure(confusion: Part, good: str, bad: str) -> Markup:
    """The four counts, with their shares of each label."""
    rows = {
        good: (confusion["true_positives"], confusion["false_negatives"]),
        bad: (confusion["false_positives"], confusion["true_negatives"]),
    }

    def paint(axes: Axes) -> None:
        for y, (name, counts) in enumerate(rows.items()):
            for x, count in enumerate(counts):
                share = count / sum(counts) if sum(counts) else 0.0
                is_right = (name == good) == (x == 0)
                axes.fill_between(
                    [x - 0.48, x + 0.48],
                    y - 0.47,
                    y + 0.47,
                    color=SERIES[0] if is_right else SERIES[1],
                    alpha=0.4 * share,
                    lw=0,
                )
                axes.text(x, y - 0.08, number(count), ha="center", va="center", fontsize=17, color=INK)
                axes.text(x, y + 0.22, f"{percent(share)} of {name}", ha="center", va="center", color=INK)
        axes.set_xlim(-0.5, 1.5)
        axes.set_ylim(1.5, -0.5)
        axes.set_xticks([0, 1], ["called good", "called bad"], color=INK)
        axes.set_yticks([0, 1], [good, bad], color=INK)
        axes.set_xlabel("decision")
        axes.set_ylabel("label")
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)

    return custom(paint, title="Confusion matrix: answers by label and by decision")


def calibration_figure(bins: Sequence[Part]) -> Markup:
    """Accuracy of each bin of confidence with its 95 % interval, and the number of comparisons in it."""
    filled = [part for part in bins if part["comparisons"]]

    def paint(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 2)), label="as sure as it is right")
        for part in filled:
            low, high = wilson_interval(part["accuracy"], part["comparisons"])
            axes.plot([part["confidence"]] * 2, [low, high], color=SERIES[0], linewidth=1.5, alpha=0.6)
            axes.annotate(
                number(part["comparisons"]),
                (part["confidence"], part["accuracy"]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=10,
                color=MUTED,
            )
        axes.plot(
            [part["confidence"] for part in filled],
            [part["accuracy"] for part in filled],
            "o",
            markersize=6,
            color=SERIES[0],
            label="measured, with 95 % interval and number of pairs",
        )
        share_axes(axes, "how sure the model is of its choice", "how often it is right")
        axes.set_xlim(0.49, 1.02)
        axes.set_ylim(-0.02, 1.03)
        legend(axes, columns=1)

    return custom(paint, title="Calibration: accuracy by confidence")


def counts_figure(edges: Sequence[float], groups: Mapping[str, Sequence[float]], x: str, count: str) -> Markup:
    """Counts between edges, of one or several groups; with two counts more than gaps, the first and last are open."""

    def paint(axes: Axes) -> None:
        for (name, counts), color in colored(groups.items()):
            drawn = list(edges)
            if len(counts) == len(edges) + 1:  # open ends, drawn as wide as the bins beside them
                drawn = [2 * edges[0] - edges[1], *edges, 2 * edges[-1] - edges[-2]]
            label = plain(name) if len(groups) > 1 else None
            axes.stairs(counts, drawn, fill=True, color=color, alpha=0.25)
            axes.stairs(counts, drawn, color=color, linewidth=1.5, label=label)
        axes.set_xlabel(plain(x))
        axes.set_ylabel(plain(count))
        axes.set_ylim(bottom=0)
        axes.grid(visible=False, axis="x")
        axes.spines["bottom"].set_color(GRID)
        legend(axes)

    return custom(paint, title=f"How often each {x} occurs")


def margins_figure(histogram: Part, x: str) -> Markup:
    """Margins in bins that widen outwards, as bars of equal width: wrong ones to the left of zero, right ones after."""
    edges, counts = histogram["edges"], histogram["comparisons"]
    middle = edges.index(0.0)

    def paint(axes: Axes) -> None:
        colors = [SERIES[1] if place <= middle else SERIES[0] for place in range(len(counts))]
        axes.bar([place - 0.5 for place in range(len(counts))], counts, width=0.94, color=colors, alpha=0.6)
        axes.axvline(middle, color=INK, linewidth=1)
        axes.set_xticks(range(len(edges)), [f"{edge:g}" for edge in edges])
        axes.set_xlabel(plain(x))
        axes.set_ylabel("pairs")
        axes.grid(visible=False, axis="x")
        axes.text(0.01, 0.97, "ranked wrong", transform=axes.transAxes, va="top", color=INK)
        axes.text(0.99, 0.97, "ranked right", transform=axes.transAxes, va="top", ha="right", color=INK)

    return custom(paint, title=f"Histogram of the {x}")


def length_figure(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], y: str) -> Markup:
    """Scores of answers against their lengths, by label."""
    return scatter(groups, Scale("length of the answer, tokens"), Scale(y), title=f"{y} against length")


def decisions_table(decisions: Part) -> Markup:
    """How often the model is right, by which answer of a pair is longer."""
    rows = []
    for key, name in DECISIONS.items():
        found = decisions[key]
        right, tie, total = found["prefers_chosen"], found["tie"], sum(found.values())
        accuracy = (right + tie / 2) / total if total else math.nan
        low, high = wilson_interval(accuracy, total)
        share = f"{percent(accuracy)} ({percent(low)} to {percent(high)})" if total else "no pairs"
        rows.append([name, number(total), number(right), number(tie), number(found["prefers_rejected"]), share])
    head = ["pairs in which", "pairs", "prefers chosen", "tie", "prefers rejected", "right, with 95 % interval"]
    return table(head, rows, numbers=range(1, 6))


def share_axes(axes: Axes, x: str, y: str) -> None:
    """Both axes in percent, labelled."""
    from matplotlib.ticker import PercentFormatter

    axes.set_xlabel(plain(x))
    axes.set_ylabel(plain(y))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines["bottom"].set_color(GRID)
