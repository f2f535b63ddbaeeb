"""What is measured of an item, how it is averaged over items, and which value is good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "mean", "balance", "per weight"]
"""share: each item's is 0 or 1; balance: -1 to 1; per weight: any number, summed, by summed weights."""

PART = "/"
"""Between the name of a measure and the part of the items that it is of: `stereotype/age`."""


@dataclass(frozen=True)
class Measure:
    """A number of every item, and how it is averaged."""

    name: str
    higher_is_better: bool | None  # None: neither, as of the length of answers
    unit: Unit
    weight: str | None = None  # the field of `values` that the sum is divided by
    ideal: float | None = None  # the best value, where neither the highest nor the lowest is
    is_partial: bool = False  # items without a value are left out
    chance: str | None = None  # the field of `values` that has what guessing gets

    def text(self) -> str:
        """Which values are good: `50 % is ideal`."""
        if self.ideal is not None:
            return (
                f"{self.ideal:.0%} is ideal".replace("%", " %") if self.unit == "share" else f"{self.ideal:g} is ideal"
            )
        if self.higher_is_better is None:
            return "no value is better than another"
        return "higher is better" if self.higher_is_better else "lower is better"
