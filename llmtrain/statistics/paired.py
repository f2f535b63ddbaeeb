"""Is one model better than another? Paired differences on the same items.

    difference = sum of b / sum of its weights - sum of a / sum of its weights      a, b: values of the two models

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
ROUNDING = 1e-12  # a difference that is none
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


@dataclass(frozen=True)
class Sums:
    """The values of a model's items, and what their sum is divided by; both (items,) float64."""

    values: Array
    weights: Array

    @classmethod
    def of(cls, values: Sequence[float] | Array, weights: Sequence[float] | Array | None = None) -> Sums:
        """Without weights each item counts once."""
        numbers = np.asarray(values, dtype=float)
        return cls(numbers, np.ones_like(numbers) if weights is None else np.asarray(weights, dtype=float))

    @property
    def ratio(self) -> float:
        """The sum of the values by that of the weights; 0 if there is nothing to divide by."""
        total = float(self.weights.sum())
        return float(self.values.sum()) / total if total else 0.0

    def mirrored(self, ideal: float) -> Sums:
        """The values as far from an ideal, on its other side."""
        return Sums(2 * ideal * self.weights - self.values, self.weights)

    def by_cluster(self, clusters: Sequence[str]) -> Sums:
        """The sums of each cluster, in the order in which they begin."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
        place = np.array([numbers[name] for name in clusters])
        return Sums(*(np.bincount(place, column, len(numbers)) for column in (self.values, self.weights)))


def paired(
    first: Sums,
    second: Sums,
    *,
    is_share: bool,
    clusters: Sequence[str] | None = None,
    ideal: float | None = None,
    level: float = LEVEL,
) -> Paired:
    """The difference of two models on the same items, at least one; `is_share`: each item's value is 0 or 1.

    With weights, values are sums, such as the bits of a text, and weights what they are divided by, such as bytes.
    `clusters`: items of one are not independent, so they are drawn, and change sides, together. With an `ideal` the
    p-value is that of being as far from it. `level`: at which a difference has to be found, for the items needed.
    """
    require_scipy()
    num_items = len(first.values)
    if clusters is not None:
        first, second = first.by_cluster(clusters), second.by_cluster(clusters)
    residuals = _residuals(first, second)
    difference = _difference(first, second)
    low, high = bootstrap_interval(first, second)
    exact = is_share and clusters is None
    p_value = equality(first, second, exact=exact, ideal=ideal)
    # The linearised difference, whose spread is the estimate's. By cluster a unit is one, and `items_needed` in items.
    units = len(residuals)
    spread = float(residuals.std(ddof=1)) if units > 1 else math.nan
    needed = items_needed(difference, spread, is_share=exact, level=level)
    return Paired(
        difference,
        low,
        high,
        p_value,
        num_items,
        None if needed is None else math.ceil(needed * num_items / units),
        smallest_found(spread, units, level),
    )


def _difference(first: Sums, second: Sums) -> float:
    """The second ratio minus the first: of equal weights that of the summed differences, which rounds less."""
    if np.array_equal(first.weights, second.weights):
        found = Sums(second.values - first.values, first.weights).ratio
    else:
        found = second.ratio - first.ratio
    return found if abs(found) > ROUNDING else 0.0


def _residuals(first: Sums, second: Sums) -> Array:
    """What each unit adds to the difference of two ratios, to first order, times the number of units."""
    found = np.zeros(len(first.values))
    for each, sign in ((first, -1.0), (second, 1.0)):
        if mean_weight := float(each.weights.mean()):
            found += sign * (each.values - each.ratio * each.weights) / mean_weight
    return found


def equality(
    first: Sums,
    second: Sums,
    *,
    exact: bool,
    ideal: float | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> float:
    """The p-value of equal ratios, before any correction; `exact`: each value is 0 or 1, and McNemar's test is used.

    Else the sign-flip test: if the models were equal, each unit's values were as likely the other's; then the common
    ratio r stays, and so (b - r w) - (a - r v), with values a, b and weights v, w, changes its sign. With an `ideal` it
    is that of being as far from it: either may be on either side, so both equality and equality with the mirrored
    second have to be refuted (an intersection-union test, Berger 1982).
    """
    if ideal is not None:
        sides = (second, second.mirrored(ideal))
        return max(equality(first, side, exact=exact, seed=seed, resamples=resamples) for side in sides)
    if exact:
        return mcnemar(first.values, second.values)
    both = Sums(first.values + second.values, first.weights + second.weights).ratio
    moved = (second.values - both * second.weights) - (first.values - both * first.weights)
    return sign_flip(np.where(np.abs(moved) < ROUNDING, 0.0, moved), seed, resamples)


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


def bootstrap_interval(first: Sums, second: Sums, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % interval of the difference of two ratios on the same units; NaN for fewer than two units."""
    from scipy.stats import bootstrap

    if len(first.values) < 2:
        return math.nan, math.nan
    same_weights = np.array_equal(first.weights, second.weights) and bool(np.all(first.weights > 0))
    if same_weights and np.ptp((second.values - first.values) / first.weights) == 0:
        return (_difference(first, second),) * 2  # every unit differs by the same: nothing to resample

    def ratios(values: Array, weights: Array, axis: int) -> Array:
        total, scale = values.sum(axis), weights.sum(axis)
        return np.divide(total, scale, out=np.zeros_like(total), where=scale != 0)

    def difference(a: Array, v: Array, b: Array, w: Array, axis: int) -> Array:
        return ratios(b, w, axis) - ratios(a, v, axis)

    found = bootstrap(
        (first.values, first.weights, second.values, second.weights),
        difference,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH_ELEMENTS // len(first.values)),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def items_needed(difference: float, spread: float, *, is_share: bool, level: float = LEVEL) -> int | None:
    """Items at which a difference of this size is found with a power of 80 % at a `level`.

    Connor's (1987) for McNemar's test, with 1 / difference more, as the exact test counts whole items; else by the
    normal approximation. `spread`: the standard deviation of an item's difference. None if there is no difference.
    """
    if not difference or math.isnan(spread):
        return None
    for_level, for_power = _normal_quantiles(level)
    size = abs(difference)
    if not is_share:
        return max(2, math.ceil(((for_level + for_power) * spread / size) ** 2))
    discordant = min(1.0, spread**2 + size**2)
    root = for_level * math.sqrt(discordant) + for_power * math.sqrt(max(0.0, discordant - size**2))
    return max(2, math.ceil((root / size) ** 2 + 1 / size))


def smallest_found(spread: float, num_items: int, level: float = LEVEL) -> float:
    """The difference that this many items find with a power of 80 % at a `level`; NaN for one item."""
    return sum(_normal_quantiles(level)) * spread / math.sqrt(num_items)


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


def _normal_quantiles(level: float) -> tuple[float, float]:
    from scipy.stats import norm

    return float(norm.ppf(1 - level / 2)), float(norm.ppf(POWER))
