"""What a store is made of: its source, what the source's rows become, and the name that follows from both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from llmtrain.config.data import Source, SourcesConfig
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.files import Content, Files, HubDataset, content_of, fingerprint, resolve
from llmtrain.data.sources.overlap import as_read
from llmtrain.data.store.documents import Documents, Layout
from llmtrain.data.store.token_store import FORMAT
from llmtrain.system.files import cache_root
from llmtrain.system.typing import Report

READING = frozenset({"earlier", "clean", "decontaminate", "words", "rows"})
"""What of a kind's `content` decides which items there are, not what is made of one."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class StoreKind(Generic[Item]):
    """What the rows of a source become, and what decides it besides the source.

    A source is read in order, into items: a row, a piece of a text. Which items there are may depend on all that was
    read before; what is made of an item depends on the item alone.
    """

    unit: str  # what a document, or several, make: "pair"
    content: Mapping[str, Any]  # all that decides a store's content besides the source; names its folder
    dtype: np.dtype[Any]  # of token ids
    read: Callable[[Source, SourceLedger], Iterator[Item]]  # enters in the ledger all else that was read
    item_content: Callable[[Item], bytes]  # all of an item that decides what is made of it
    item_bytes: Callable[[Item], int]  # its length, roughly
    make: Callable[[Sequence[Item], Documents], None]  # adds what items become, and their account
    try_first: Callable[[Source], None]  # reads up to a source's first example
    summary: Callable[[SourceLedger], str]  # the account in one line
    resolve: Callable[[Source], Files | HubDataset] = resolve  # the files of a source that are read
    masked: bool = True  # tokens come with whether they are targets of the loss
    values: tuple[str, ...] = ()  # names of the numbers that each document carries
    about: Mapping[str, Any] = field(default_factory=dict)  # written to store.json in place of `content`, by key

    # `read`, `make` and `try_first` raise ValueError, one line, for bad input.

    @property
    def layout(self) -> Layout:
        return Layout(self.dtype, self.masked, self.values)

    @property
    def makes(self) -> tuple[str, ...]:
        """Names for all that makes tokens of an item: this kind's own, and others that make the same."""
        made = {name: value for name, value in self.content.items() if name not in READING}
        # What was made while bad rows were errors has none, so it is the same where they are skipped.
        modes = dict.fromkeys((made["on_bad_row"], "error"))
        return tuple(fingerprint({"format": FORMAT, **made, "on_bad_row": mode}) for mode in modes)


@dataclass(frozen=True)
class StoreSpec:
    """The store of one source: where it is, and how it is built."""

    key: str  # where the configuration names the source, for messages
    source: Source
    kind: StoreKind[Any]
    folder: Path
    read: Content | None  # what is read; None: the source is a finished store
    meta: Mapping[str, Any]  # written to store.json

    @property
    def named(self) -> str:
        """The source, for messages."""
        return f"{self.key} ({self.source.path})"

    def require_unchanged(self, report: Report) -> None:
        """Raises ValueError if the source holds something else by now."""
        now = content_of(self.source, self.kind.resolve(self.source), str(self.folder.parent), report)
        if self.read is None or now.fingerprint != self.read.fingerprint:
            raise ValueError(f"{self.named}: its files changed while they were read; start again")


@dataclass(frozen=True)
class StoreSpecs:
    """The stores of a run."""

    data: SourcesConfig
    train: Sequence[StoreSpec]
    eval: Sequence[StoreSpec]  # those of `data.eval`; without it, a split of `train` is held out

    def __iter__(self) -> Iterator[StoreSpec]:
        yield from (*self.train, *self.eval)


def store_spec(key: str, source: Source, kind: StoreKind[Any], cache_dir: str | None, report: Report) -> StoreSpec:
    """The store of a source of this kind, in the cache. Raises ValueError for a source that is not there."""
    read = content_of(source, kind.resolve(source), cache_dir, report)
    name = fingerprint({"format": FORMAT, "source": read.fingerprint, **kind.content})
    return StoreSpec(
        key=key,
        source=source,
        kind=kind,
        folder=cache_root(cache_dir) / name,
        read=read,
        meta={
            "name": name,
            "source": source.model_dump(),
            "source_fingerprint": read.fingerprint,
            "parts": as_read(key, source, read).parts,
            "revision": read.location.commit if isinstance(read.location, HubDataset) else None,
            **kind.content,
            **kind.about,
        },
    )
