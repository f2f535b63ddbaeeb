"""Robust statistics of curves: smoothing, noise, trends, spikes. Pure functions of arrays.

They are medians and ranks, so that one wild value decides nothing.
"""

from __future__ import annotations

import math

import numpy as np

from llmtrain.system.typing import Array

MAD_TO_STD = 1.482602218505602  # of a normal distribution: 1 / its 75 % quantile
MOST_VALUES = 10_000_000  # in all windows whose medians are taken, if a curve is long
WINDOWS_PER_WIDTH = 8  # of a longer curve: so many overlap, or more
VALUES_AT_ONCE = 1_000_000  # that are copied to be sorted
LEAST_AROUND = 3  # rows before and after one that may be a spike


def rolling_median(values: Array, width: int) -> Array:
    """The median in a centred window of an odd `width`; at the ends of what of it is there. Both arrays (rows,)."""
    half = min(width // 2, len(values))
    if not half:
        return values.astype(float)
    padded = np.concatenate([np.full(half, np.nan), values, np.full(half, np.nan)])
    return _medians(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1))


def _medians(windows: Array) -> Array:
    """The median of each window, (windows, width), without NaN, which only the ends of a curve have.

    Of a long curve: of windows that overlap, and on lines between them.
    """
    count, width = windows.shape
    every = min(1 + count * width // MOST_VALUES, max(1, width // WINDOWS_PER_WIDTH))
    taken = np.append(np.arange(0, count - 1, every), count - 1)
    parts = np.array_split(taken, 1 + len(taken) * width // VALUES_AT_ONCE)
    return np.interp(np.arange(count), taken, np.concatenate([_each_median(windows[part]) for part in parts]))


def _each_median(windows: Array) -> Array:
    at_end = np.isnan(windows[:, 0]) | np.isnan(windows[:, -1])
    medians = np.empty(len(windows))
    for mask, median in ((at_end, np.nanmedian), (~at_end, np.median)):
        medians[mask] = median(windows[mask], axis=1) if mask.any() else 0.0
    return medians


def noise(positions: Array, values: Array) -> float:
    """The standard deviation of a smooth curve's noise: how far each point is from the line through its neighbours.

    0 for fewer than five points, whose bends look like noise. (Gasser, Sroka and Jennen-Steinmetz 1986)
    """
    if len(values) < 5:
        return 0.0
    left, middle, right = positions[:-2], positions[1:-1], positions[2:]
    span = np.where(right > left, right - left, 1.0)
    share = np.where(right > left, (middle - left) / span, 0.5)
    residuals = values[1:-1] - (1 - share) * values[:-2] - share * values[2:]
    scale = np.sqrt(1 + share**2 + (1 - share) ** 2)
    return MAD_TO_STD * float(np.median(np.abs(residuals / scale)))


def rise_probability(values: Array) -> float:
    """How likely values in random order rise as much as these: Mann and Kendall's one-sided p, ties counted.

    Near 0: they rise; near 1: they fall. By the normal approximation; 0.5 for fewer than three values, or if all are
    equal. (Mann 1945, Kendall 1975)
    """
    count = len(values)
    if count < 3:
        return 0.5
    score = sum(float(np.sign(values[i + 1 :] - values[i]).sum()) for i in range(count - 1))
    _, ties = np.unique(values, return_counts=True)
    variance = (count * (count - 1) * (2 * count + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0:
        return 0.5
    return 0.5 * math.erfc(score / math.sqrt(2 * variance))


def spikes(values: Array, width: int, deviations: float, least: float) -> list[int]:
    """Where values leap above the medians before and after them, by `deviations` of the noise around and by `least`.

    The first row of each episode: rows next to each other are one. The first and last rows, which nothing precedes or
    follows, are none, and so is a value that is not finite.
    """
    finite = np.flatnonzero(np.isfinite(values))
    known, half = values[finite], width // 2
    inner = slice(LEAST_AROUND, len(known) - LEAST_AROUND)
    if inner.stop <= inner.start:
        return []
    padded = np.concatenate([np.full(half, np.nan), known, np.full(half, np.nan)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, half)
    before, after = _medians(windows[inner]), _medians(windows[half + 1 :][inner])
    spread = MAD_TO_STD * rolling_median(np.abs(known - rolling_median(known, width)), width)
    is_spike = known[inner] - np.maximum(before, after) > np.maximum(deviations * spread[inner], least)
    found = finite[inner][is_spike]
    return [int(row) for i, row in enumerate(found) if not i or row > found[i - 1] + 2]
