"""No file is both trained on and held out: `data.eval` and `data.train` are compared by the content of their files.

A finished store counts as the files it was made of, whose hashes its `store.json` lists.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from llmtrain.config.data import Source
from llmtrain.data.sources.files import Content, HubDataset
from llmtrain.data.sources.slices import parse_slice
from llmtrain.system.paths import local_path


@dataclass(frozen=True)
class Read:
    """A source of the configuration and what it holds."""

    key: str  # `data.train[0]`
    path: str
    parts: tuple[str, ...]  # a hash of each file that is not empty, or of the hub the commit, split and subset
    names: tuple[str, ...]  # of each part, for messages; (): a store, which knows no names
    slice: str | None
    store: str | None = None  # name of a finished store
    holds_out: bool = False  # the store has a held-out split, which alone is evaluated


def as_read(key: str, source: Source, content: Content) -> Read:
    """A source whose text is read."""
    if isinstance(content.location, HubDataset):
        return Read(key, source.path, content.parts, (content.location.name,), source.slice)
    parts = zip(content.parts, content.location.paths, strict=True)
    held = [(part, str(path)) for part, path in parts if path.stat().st_size]
    hashes, names = (tuple(each[i] for each in held) for i in (0, 1))
    return Read(key, source.path, hashes, names, source.slice)


def require_disjoint(train: Sequence[Read], held_out: Sequence[Read]) -> None:
    """Raises ValueError for a file, or hub dataset, that is read for both; slices of one source that do not meet pass.

    A copy, a link and another name are the same file; a compressed copy is another.
    """
    for evaluated, trained in product(held_out, train):
        common = _common(trained, evaluated)
        if common is not None and not _splits_of_one_store(trained, evaluated) and not _separate(trained, evaluated):
            raise ValueError(
                f"{evaluated.key}={evaluated.path}: {common} is also read by {trained.key}={trained.path}, so that it "
                f"would be trained on and evaluated; {_fix(trained, evaluated, common)}"
            )


def _common(trained: Read, evaluated: Read) -> str | None:
    """The first part of `trained` that `evaluated` has too."""
    others = set(evaluated.parts)
    index = next((index for index, part in enumerate(trained.parts) if part in others), None)
    if index is None:
        return None
    if trained.names:
        return trained.names[index]
    return evaluated.names[evaluated.parts.index(trained.parts[index])] if evaluated.names else "what it was made of"


def _splits_of_one_store(trained: Read, evaluated: Read) -> bool:
    return trained.store is not None and trained.store == evaluated.store and evaluated.holds_out


def _separate(one: Read, other: Read) -> bool:
    if one.parts != other.parts or one.slice is None or other.slice is None:
        return False
    (first_low, first_high), (second_low, second_high) = (parse_slice(each.slice) for each in (one, other))
    return first_high <= second_low or second_high <= first_low


def _fix(trained: Read, evaluated: Read, common: str) -> str:
    if trained.store is not None or evaluated.store is not None:
        return "give other data, or leave data.eval out and build the store with data.eval_fraction"
    root = local_path(trained.path)
    if root.is_dir():
        name = Path(os.path.relpath(common, root)).as_posix()
        return f"leave it out there (the source's exclude: [{name}])"
    return "give another file, or each a slice of it (slice: 0%:90% and slice: 90%:100%)"
