"""What is tried on a model before a step is trained, and how that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from llmtrain.system.files import one_line
from llmtrain.system.memory import is_out_of_memory

FAULTS = (LookupError, AttributeError, TypeError, ValueError, RuntimeError, AssertionError)
"""How a model fails that does not know what it is given."""

Found = TypeVar("Found")


class Fault(str):
    """What a model says as it fails, in one line."""


def tried(run: Callable[[], Found]) -> Found | Fault:
    """What a trial gives, or its fault. Running out of memory is no fault of what is tried, and is raised."""
    try:
        return run()
    except FAULTS as error:
        if is_out_of_memory(error):
            raise
        return Fault(one_line(error))
