"""What a key says of itself besides type and meaning, as metadata of its field: `Annotated[int, Needs(...)]`.

When it would do nothing, whether a run may continue with another value, which engines have what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Needs:
    """The key does nothing unless its section is so: what that is, in words, and the test of the section."""

    what: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class OnResume:
    """The key, or a whole section, may differ when a run is continued; any other makes it another run."""

    matters: bool
    """Whether a finished run would have come out otherwise."""
    names_content: bool = False
    """The key says where something is: what is there decides, by the facts that a run pins."""


MAY_CHANGE, IMMATERIAL = OnResume(matters=True), OnResume(matters=False)
BY_CONTENT = OnResume(matters=True, names_content=True)


@dataclass(frozen=True)
class Feature:
    """The key asks for what not every engine has."""

    name: str
    """As in the table of capabilities."""
    values: tuple[object, ...] = ()
    """The values that ask for it; (): any but the default."""
