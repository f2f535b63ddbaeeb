"""What a mistyped word may have meant: named only if it is near."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NEAR = 0.6
"""Share of the letters that two words have in common, in order: `stf` and `sft` 0.67, `zzz` and `z_loss` 0.22."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like a mistyped one; None: none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=NEAR)), None)
