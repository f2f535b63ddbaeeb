"""No file is both trained on and held out: `data.eval` and `data.train` are compared by the content of their files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from llmtrain.config.sections import Source
from llmtrain.data.sources.files import Content, HubDataset
from llmtrain.data.sources.slices import parse_slice


@dataclass(frozen=True)
class Read:
    """A source of the configuration and what it holds."""

    key: str  # `data.train[0]`
    source: Source
    content: Content | None  # None: a finished store, whose text is not known


def require_disjoint(train: Sequence[Read], held_out: Sequence[Read]) -> None:
    """Raises ValueError for a file, or hub dataset, that is read for both; slices of one source that do not meet pass.

    A copy, a link and another name are the same file; a compressed copy is another.
    """
    for evaluated, trained in product(held_out, train):
        if evaluated.content is None or trained.content is None:
            continue
        common = _common(trained.content, evaluated.content)
        if common is not None and not _separate_slices(trained, evaluated):
            raise ValueError(
                f"{evaluated.key}={evaluated.source.path}: {common} is also read by {trained.key}="
                f"{trained.source.path}, so that it would be trained on and evaluated; {_fix(trained, common)}"
            )


def _common(trained: Content, evaluated: Content) -> str | None:
    """The first file of `trained` that `evaluated` has too; empty files do not count."""
    if isinstance(trained.location, HubDataset):
        return trained.location.name if trained.parts == evaluated.parts else None
    others = set(evaluated.parts)
    pairs = zip(trained.location.paths, trained.parts, strict=True)
    return next((str(path) for path, part in pairs if part in others and path.stat().st_size), None)


def _separate_slices(one: Read, other: Read) -> bool:
    assert one.content is not None and other.content is not None
    if one.content.parts != other.content.parts or one.source.slice is None or other.source.slice is None:
        return False
    (first_low, first_high), (second_low, second_high) = (parse_slice(each.source.slice) for each in (one, other))
    return first_high <= second_low or second_high <= first_low


def _fix(trained: Read, common: str) -> str:
    root = Path(trained.source.path).expanduser()
    if root.is_dir():
        name = Path(os.path.relpath(common, root)).as_posix()
        return f"leave it out there (the source's exclude: [{name}])"
    return "give another file, or each a slice of it (slice: 0%:90% and slice: 90%:100%)"
