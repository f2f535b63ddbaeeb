"""Is one model better than another? Paired differences on the same items.

    difference = sum of (b - a) / sum of weights        a, b: an item's values for the two models

Whether it is more than noise is decided by a test whose error rate holds for any number of items: McNemar's exact test
of shares (1947: only items that one model has right and the other wrong tell), else the sign-flip permutation test.
The interval is that of the paired bootstrap. Several differences at once are corrected by Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np

from llmtrain.system.typing import Array

RESAMPLES = 9999
BATCH_ELEMENTS = 10_000_000  # of a bootstrap, in memory at a time
LEVEL = 0.05
POWER = 0.8

Verdict = Literal["better", "worse", "higher", "lower", "not distinguishable"]
"""Of the second model; "higher" and "lower" where neither is better."""


@dataclass(frozen=True)
class Paired:
    """A difference between two models, the second minus the first."""

    difference: float
    low: float  # of its 95 % interval
    high: float
    p_value: float  # before any correction for several differences
    num_items: int
    num_needed: int | None  # items to find a difference of this size with a power of 80 %; None: there is none to find
    smallest: float  # difference that this many items find with that power


def has_scipy() -> bool:
    """Whether SciPy is installed, which comparing needs."""
    return find_spec("scipy") is not None


def require_scipy() -> None:
    """Raises ValueError if SciPy is not installed."""
    if not has_scipy():
        raise ValueError("comparing needs SciPy: pip install 'llmtrain[measure]'")


def paired(
    first: Sequence[float],
    second: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    is_share: bool,
    seed: int = 0,
) -> Paired:
    """The difference of two models on the same items, at least one; `is_share`: each item's value is 0 or 1.

    With `weights`, values are sums, such as the bits of a text, and weights what they are divided by, such as bytes.
    """
    require_scipy()
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    scale = np.ones_like(a) if weights is None else np.asarray(weights, dtype=float)
    differences, mean_weight = b - a, float(scale.mean())
    difference = float(differences.sum() / scale.sum())
    low, high = bootstrap_interval(differences, scale, seed)
    p_value = mcnemar(a, b) if is_share else sign_flip(differences, seed)
    residuals = (differences - difference * scale) / mean_weight  # the linearised ratio, whose spread is the estimate's
    spread = float(residuals.std(ddof=1)) if len(a) > 1 else math.nan
    return Paired(
        difference,
        low,
        high,
        p_value,
        len(a),
        items_needed(difference, spread, is_share=is_share),
        smallest_found(spread, len(a)),
    )


def mcnemar(first: Array, second: Array) -> float:
    """The p-value of McNemar's exact test: of items that one model alone has right, each is as likely either's."""
    from scipy.stats import binomtest

    wins, losses = int(np.sum(second > first)), int(np.sum(second < first))
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def sign_flip(differences: Array, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """The p-value of the paired permutation test: without a difference, each item's sign is as likely the other."""
    from scipy.stats import permutation_test

    moved = differences[differences != 0]
    if len(moved) < 2:  # of one, either sign is as extreme
        return 1.0
    tested = permutation_test(
        (moved,),
        lambda values, axis: values.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH_ELEMENTS // len(moved)),
        rng=np.random.default_rng(seed),
    )
    return float(tested.pvalue)


def bootstrap_interval(
    differences: Array, weights: Array, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % interval of a summed difference per summed weight; NaN for fewer than two items."""
    from scipy.stats import bootstrap

    if len(differences) < 2:
        return math.nan, math.nan
    if np.ptp(differences / weights) == 0:  # every item differs by the same: nothing to resample
        return (float(differences.sum() / weights.sum()),) * 2

    def ratio(values: Array, scales: Array, axis: int) -> Array:
        return values.sum(axis) / scales.sum(axis)

    found = bootstrap(
        (differences, weights),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH_ELEMENTS // len(differences)),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def items_needed(difference: float, spread: float, *, is_share: bool) -> int | None:
    """Items at which a difference of this size is found with a power of 80 % at a level of 5 %.

    Connor's (1987) for McNemar's test, with 1 / difference more, as the exact test counts whole items; else by the
    normal approximation. `spread`: the standard deviation of an item's difference. None if there is no difference.
    """
    if not difference or math.isnan(spread):
        return None
    for_level, for_power = _normal_quantiles()
    size = abs(difference)
    if not is_share:
        return max(2, math.ceil(((for_level + for_power) * spread / size) ** 2))
    discordant = min(1.0, spread**2 + size**2)
    root = for_level * math.sqrt(discordant) + for_power * math.sqrt(max(0.0, discordant - size**2))
    return max(2, math.ceil((root / size) ** 2 + 1 / size))


def smallest_found(spread: float, num_items: int) -> float:
    """The difference that this many items find with a power of 80 %; NaN for one item."""
    return sum(_normal_quantiles()) * spread / math.sqrt(num_items)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values: below 0.05 where a difference holds among all that are looked at."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def verdict(difference: float, p_value: float, *, higher_is_better: bool | None) -> Verdict:
    """What to say of the second model, by its corrected p-value; `higher_is_better` None: neither is."""
    if p_value >= LEVEL or not difference:
        return "not distinguishable"
    if higher_is_better is None:
        return "higher" if difference > 0 else "lower"
    return "better" if (difference > 0) == higher_is_better else "worse"


def _normal_quantiles() -> tuple[float, float]:
    from scipy.stats import norm

    return float(norm.ppf(1 - LEVEL / 2)), float(norm.ppf(POWER))
