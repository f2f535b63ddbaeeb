"""The figures of a sweep: the tree, parallel coordinates, the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from llmtrain.config.help import yaml_scalar
from llmtrain.runs.report.curves import Curve
from llmtrain.runs.report.figures import Line, Scale, line_chart
from llmtrain.runs.report.svg import BAD, GOOD, GRID, INK, MUTED, SERIES, draw, draw_hero, plain
from llmtrain.tune.sweep.influence import Node, scored, split_text, value_of
from llmtrain.tune.sweep.space import Dimension
from llmtrain.tune.sweep.study import TrialRecord
from llmtrain.tune.sweep.words import number_text, ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_BEST = 5  # trials whose curves are drawn
ROW_PIXELS = 58  # of a group of the tree
TREE_WIDTH = 760


def best_so_far(records: Sequence[TrialRecord], metric: str, maximize: bool) -> Markup:
    """The score of each trial, and the best up to it."""
    trials = [record for record in scored(records) if record.is_finished]
    pruned = [record for record in scored(records) if record.state == "pruned"]
    numbers = [float(trial.number) for trial in trials]
    scores = [trial.score or 0.0 for trial in trials]
    best = np.maximum.accumulate(scores) if maximize else np.minimum.accumulate(scores)
    lines = [
        Line("best so far", _curve(numbers, list(best)), SERIES[0], "marked"),
        Line("a trial", _curve(numbers, scores), SERIES[1], "points"),
    ]
    if pruned:
        lines.append(
            Line(
                "stopped early",
                _curve([float(trial.number) for trial in pruned], [trial.score or 0.0 for trial in pruned]),
                SERIES[7],
                "points",
            )
        )
    return line_chart(lines, Scale("trial"), Scale(metric, may_be_log=True), title=f"Best {metric} against trials")


def curves(records: Sequence[TrialRecord], metric: str, maximize: bool) -> Markup:
    """The evaluations of the best trials over their steps."""
    best = [record for record in ranked(records, maximize) if record.is_finished and record.curve][:NUM_BEST]
    lines = [
        Line(
            f"trial {record.number}",
            _curve(list(map(float, record.curve)), list(record.curve.values())),
            color,
            "marked",
        )
        for record, color in zip(best, SERIES, strict=False)
    ]
    return line_chart(
        lines, Scale("step"), Scale(metric, may_be_log=True), title=f"{metric} of the best trials over their steps"
    )


def parallel_coordinates(
    records: Sequence[TrialRecord], space: Sequence[Dimension], given: Mapping[str, Any], metric: str, maximize: bool
) -> Markup:
    """A line for each trial through its values; the best quarter is coloured."""
    trials = ranked(scored(records), maximize)
    num_best = max(1, len(trials) // 4)
    axes_of = [*((dimension.key, _positions(trials, dimension, given)) for dimension in space)]
    scores = [trial.score or 0.0 for trial in trials]
    axes_of.append((metric, (_unit(scores), _ends(scores))))

    def paint(axes: Axes) -> None:
        for i in reversed(range(len(trials))):
            heights = [positions[i] for _, (positions, _) in axes_of]
            is_best = i < num_best
            axes.plot(
                range(len(axes_of)),
                heights,
                color=GOOD if is_best else MUTED,
                linewidth=2 if is_best else 1,
                alpha=0.9 if is_best else 0.35,
                marker="o" if is_best else None,
                markersize=4,
            )
        for x, (_, (_, ticks)) in enumerate(axes_of):
            axes.axvline(x, color=GRID, linewidth=1)
            for height, label in ticks:
                axes.annotate(plain(label, 18), (x, height), (4, 0), "data", "offset points", color=INK, va="center")
        axes.set_xticks(range(len(axes_of)), [plain(name, 26) for name, _ in axes_of], color=INK)
        axes.set_yticks([])
        axes.set_xlim(-0.15, len(axes_of) - 0.6)
        axes.set_ylim(-0.08, 1.08)
        axes.grid(visible=False)

    return draw_hero(paint, f"Each trial's values and its {metric}; the best quarter in colour")


def tree_drawing(tree: Node, metric: str, maximize: bool) -> Markup:
    """The decision tree from left to right: each split's condition, each group's mean and size."""
    leaves = tree.leaves()
    rows = {id(leaf): float(i) for i, leaf in enumerate(leaves)}
    depth = max(len(leaf.path) for leaf in leaves)
    means = [leaf.mean for leaf in leaves]
    best, worst = (max(means), min(means)) if maximize else (min(means), max(means))

    def place(node: Node) -> tuple[float, float]:
        if not node.children:
            return float(len(node.path)), rows[id(node)]
        heights = [place(child)[1] for child in node.children]
        return float(len(node.path)), sum(heights) / len(heights)

    def paint(axes: Axes) -> None:
        def paint_node(node: Node) -> None:
            x, y = place(node)
            for child in node.children:
                child_x, child_y = place(child)
                axes.plot([x, x + 0.12, x + 0.12, child_x], [y, y, child_y, child_y], color=GRID, linewidth=1.5)
                paint_node(child)
            color = GOOD if node.mean == best else BAD if node.mean == worst else INK
            if node.path:
                axes.text(x - 0.84, y - 0.1, plain(split_text(node), 40), color=INK, va="bottom", ha="left")
            text = f"{number_text4(node.mean)}  ({len(node.trials)})"
            axes.text(x - 0.84 if node.path else x, y + 0.1, text, color=color, va="top", ha="left", weight="bold")

        paint_node(tree)
        axes.set_xlim(-0.05, depth + 0.1)
        axes.set_ylim(len(leaves) - 0.4, -0.6)
        axes.set_axis_off()

    title = f"Decision tree: mean {metric} and number of runs of each group"
    return draw(paint, title, (TREE_WIDTH, ROW_PIXELS * len(leaves) + 20))


def number_text4(number: float) -> str:
    """A score to four digits."""
    return f"{number:.4g}"


def _positions(
    trials: Sequence[TrialRecord], dimension: Dimension, given: Mapping[str, Any]
) -> tuple[list[float], list[tuple[float, str]]]:
    """The height of each trial on a key's axis, NaN where the key did not vary, and the axis's labels."""
    values = [value_of(trial, dimension, given) for trial in trials]
    known = [value for value in values if value is not None]
    is_number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known)
    if dimension.choices or not is_number:
        labels = list(dict.fromkeys([*dimension.labels, *map(yaml_scalar, known)]))
        heights = {label: (i + 0.5) / len(labels) for i, label in enumerate(labels)}
        places = [math.nan if value is None else heights[yaml_scalar(value)] for value in values]
        return places, [(height, label) for label, height in heights.items()]
    low, high = min([dimension.low, *known]), max([dimension.high, *known])
    scale = math.log if dimension.is_log else float
    span = (scale(high) - scale(low)) or 1.0
    places = [math.nan if value is None else (scale(value) - scale(low)) / span for value in values]
    return places, [(0.0, number_text(low)), (1.0, number_text(high))]


def _unit(scores: Sequence[float]) -> list[float]:
    """Scores from 0, the lowest, to 1."""
    span = (max(scores) - min(scores)) or 1.0
    return [(score - min(scores)) / span for score in scores]


def _ends(scores: Sequence[float]) -> list[tuple[float, str]]:
    return [(0.0, number_text4(min(scores))), (1.0, number_text4(max(scores)))]


def _curve(x: Sequence[float], y: Sequence[float]) -> Curve:
    return Curve(np.array(x, dtype=np.float64), np.array(y, dtype=np.float64))
