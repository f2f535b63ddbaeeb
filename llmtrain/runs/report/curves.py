"""Columns of a run's rows as curves, and curves with few enough points to be drawn."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from llmtrain.runs.rows import Rows

BUCKETS = 400
"""A curve of more than twice as many points is drawn as the lowest and highest of each of so many parts."""

MEANS_PER_CURVE = 60
"""A running mean is over so small a part of the rows."""


@dataclass(frozen=True)
class Curve:
    """Values over steps; NaN where there is none."""

    x: Float[ndarray, " points"]
    y: Float[ndarray, " points"]


def column(rows: Rows, name: str) -> Curve:
    """A field of those rows that have it, over steps; NaN where it is null: it was not finite."""
    numbers, values = rows.column(name)
    step_numbers, steps = rows.column("step")
    _, here, there = np.intersect1d(numbers, step_numbers, assume_unique=True, return_indices=True)
    return Curve(steps[there], values[here])


def scaled(curve: Curve, factor: float) -> Curve:
    """Values in another unit."""
    return Curve(curve.x, curve.y * factor)


def running_mean(curve: Curve) -> tuple[Curve, int]:
    """The mean of the rows around each row, and of how many; of a short curve the curve itself, and 0."""
    window = len(curve.y) // MEANS_PER_CURVE
    if window < 2:
        return curve, 0
    window += 1 - window % 2  # the row itself is in the middle
    finite = np.isfinite(curve.y)
    sums, counts = (_window_sums(values, window) for values in (np.where(finite, curve.y, 0.0), finite.astype(float)))
    return Curve(curve.x, np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)), window


def _window_sums(values: Float[ndarray, " points"], window: int) -> Float[ndarray, " points"]:
    """The sum over each value and its neighbours, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    return sums[np.minimum(places + window // 2 + 1, len(values))] - sums[np.maximum(places - window // 2, 0)]


def thinned(curve: Curve, buckets: int = BUCKETS) -> Curve:
    """At most two points of each bucket, its lowest and its highest, so that no spike is lost."""
    num_points = len(curve.x)
    if num_points <= 2 * buckets:
        return curve
    kept: list[int] = []
    for start, end in _bounds(num_points, buckets):
        part = curve.y[start:end]
        if np.isnan(part).all():
            kept.append(start)  # a gap
        else:
            kept += sorted({start + int(np.nanargmin(part)), start + int(np.nanargmax(part))})
    return Curve(curve.x[kept], curve.y[kept])


def evenly(total: int, most: int) -> list[int]:
    """At most so many of so many places, evenly, the first and the last among them."""
    if total <= most:
        return list(range(total))
    return [round(place * (total - 1) / (most - 1)) for place in range(most)]


def _bounds(num_points: int, buckets: int) -> list[tuple[int, int]]:
    edges = np.linspace(0, num_points, buckets + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))
