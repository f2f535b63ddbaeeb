"""Whether two formulas are equal, by math-verify, in a child process with a hard limit of time."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llmtrain.rewards.limited import Answer, LimitedChild

CHILD = Path(__file__).with_name("math_child.py")


def require_math_verify() -> None:
    """Raises ValueError if math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise ValueError("answers that are formulas need math-verify, which is not installed: pip install math-verify")


def formulas_equal(gold: str, answer: str, seconds: float) -> Answer:
    """Whether two formulas are equal."""
    return _child(seconds).ask({"gold": gold, "answer": answer})


@cache
def _child(seconds: float) -> LimitedChild:
    return LimitedChild(CHILD, seconds, "python -c 'import math_verify'")
