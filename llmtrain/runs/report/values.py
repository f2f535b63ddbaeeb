"""Numbers as people read them: counts, shares, times, sizes."""

from __future__ import annotations

import math
from typing import TypeGuard

UNITS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def count(number: float) -> str:
    """`1,234`, or `1.23 million`."""
    for size, name in UNITS:
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{round(number):,}"


def counted(number: float, one: str, many: str = "") -> str:
    """`1 row`, `2 rows`."""
    return f"{count(number)} {one if number == 1 else many or f'{one}s'}"


def number(value: object) -> str:
    """A measured value to four digits; `not finite` for None and NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "not finite" if value is None else str(value)
    if not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:#.4g}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.3g}"


def given(value: object) -> str:
    """A number as a person gave it: `0.01`, `5e-04`."""
    return f"{value:g}" if is_finite(value) else str(value)


def percent(share: float) -> str:
    """`12.3 %`."""
    return f"{share:.1%}".replace("%", " %") if math.isfinite(share) else "not finite"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`, `3 days 4 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def size(num_bytes: float) -> str:
    """`1.2 GB`."""
    for unit, name in BYTES:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{round(num_bytes):,} bytes"


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a field of a row is a number that is finite."""
    return isinstance(value, (int, float)) and math.isfinite(value)
