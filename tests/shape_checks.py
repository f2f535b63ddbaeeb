"""How the tests check tensor shapes while llmtrain runs; everything else in a signature is mypy's affair."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from beartype import beartype

SHAPED = re.compile(r"\b(Bool|Float\d*|Inexact|Int\d*|Integer|Num|Shaped|UInt\d*)\[")
"""An annotation of jaxtyping's, as it is written."""


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the jaxtyping annotations of its signature checked at each call."""
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if SHAPED.search(str(hint))
    }
    return beartype(function)
