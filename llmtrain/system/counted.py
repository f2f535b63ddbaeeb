"""Numbers in messages: of things, `1 shard`, `1,200 rows`, and of seconds, `2:03`."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """A number and what it counts; `many`: the plural, if it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def clock(seconds: float) -> str:
    """A time as `1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
