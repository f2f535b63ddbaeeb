"""The token stores of a run: each source's, found or built, shared by all runs that agree on its content.

What is the same of every kind: the store's folder is named by what decides its content; it is found, or built under
its lock while other processes wait; what is read is accounted for. What rows become is the kind's own: `kinds` for
rows of chats, pairs and labelled answers, `text` for plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.config.sections import Source, SourcesConfig
from llmtrain.data.ledger import Ledger, SourceLedger, Split
from llmtrain.data.sources.files import fingerprint, resolved_revision, source_fingerprint
from llmtrain.data.store.token_store import (
    FORMAT,
    StoreWriter,
    TokenStore,
    discard_unfinished,
    is_store,
    open_store,
    read_meta,
)
from llmtrain.protocols import Report
from llmtrain.system.files import cache_root, disk_full, exclusive, is_disk_full

Fill = Callable[[Source, SourceLedger, StoreWriter], int]
"""Writes all documents of a source, entered in its ledger; returns how many pieces of the source that were."""


@dataclass(frozen=True)
class StoreKind:
    """What the rows of a source become, and what decides it besides the source."""

    unit: str  # what a document, or several, make: "pair"
    content: Mapping[str, Any]  # all that decides a store's content besides the source; names its folder
    dtype: np.dtype[Any]  # of token ids
    fill: Fill  # raises ValueError, one line, for bad input
    summary: Callable[[SourceLedger], str]  # the account in one line
    masked: bool = True  # tokens come with whether they are targets of the loss
    values: tuple[str, ...] = ()  # names of the numbers that each document carries
    about: Mapping[str, Any] = field(default_factory=dict)  # written to store.json in place of `content`, by key
    resumes: bool = False  # an interrupted build resumes where it stopped, else it starts again


@dataclass(frozen=True)
class StoreSpec:
    """The store of one source: where it is, and how it is built."""

    key: str  # where the configuration names the source, for messages
    source: Source
    kind: StoreKind
    folder: Path
    source_fingerprint: str
    meta: Mapping[str, Any]  # written to store.json

    @property
    def named(self) -> str:
        """The source, for messages."""
        return f"{self.key} ({self.source.path})"


@dataclass(frozen=True)
class Stores:
    """The stores of a run, one per source, in the order of the configuration, and the account of all."""

    train: list[TokenStore]
    eval: list[TokenStore]  # empty if nothing is held out
    ledger: Ledger

    @property
    def held_out(self) -> list[tuple[SourceLedger, Split]]:
        """The account of each held-out source, and which split of it is held out."""
        return list(zip(self.ledger.eval or self.ledger.train, [store.split for store in self.eval], strict=False))

    @property
    def names(self) -> list[str]:
        """The folders' names, which identify their content."""
        return [store.path.name for store in (*self.train, *self.eval)]


def store_spec(key: str, source: Source, kind: StoreKind, cache_dir: str | None) -> StoreSpec:
    """The store of a source of this kind, in the cache. Raises ValueError for a source that is not there."""
    read = source_fingerprint(source)
    name = fingerprint({"format": FORMAT, "source": read, **kind.content})
    return StoreSpec(
        key=key,
        source=source,
        kind=kind,
        folder=cache_root(cache_dir) / f"{_slug(source.path)}-{name}",
        source_fingerprint=read,
        meta={
            "source": source.model_dump(),
            "source_fingerprint": read,
            "revision": resolved_revision(source),
            **kind.content,
            **kind.about,
        },
    )


def find_or_build(
    data: SourcesConfig, train: Sequence[StoreSpec], held_out: Sequence[StoreSpec], report: Report
) -> Stores:
    """The stores of a run's sources: found, or built by this process while others wait for it.

    `held_out` are those of `data.eval`; without it, a split of `train` is held out. Raises ValueError, one line, for
    bad input, a source of which nothing is left, or a full disk.
    """
    for spec in (*train, *held_out):
        if not is_store(spec.folder):
            with exclusive(spec.folder, report):
                if not is_store(spec.folder):
                    _build(spec, report)
        report(f"{spec.named}: {spec.kind.summary(_read_ledger(spec.folder))}")
    train_stores = [_opened(spec, "train") for spec in train]
    if data.eval is None:
        eval_stores = [open_store(spec.folder, "eval") for spec in train] if data.eval_fraction else []
        _require_held_out(data, train_stores, eval_stores, report)
    else:
        eval_stores = [_opened(spec, _held_out_split(spec.folder)) for spec in held_out]
    ledger = Ledger(*([_read_ledger(spec.folder) for spec in specs] for specs in (train, held_out)))
    ledger.check()
    return Stores(train_stores, eval_stores, ledger)


def _build(spec: StoreSpec, report: Report) -> None:
    """Build a store in its folder, whose lock the caller holds.

    Raises ValueError for bad input, after deleting what it wrote, and for a full disk, keeping what a later build goes
    on from.
    """
    kind = spec.kind
    if not kind.resumes:
        discard_unfinished(spec.folder, kind.values)
    try:
        _fill(spec, report)
    except ValueError:
        discard_unfinished(spec.folder, kind.values)
        raise
    except OSError as error:
        if not kind.resumes:
            discard_unfinished(spec.folder, kind.values)
        if not is_disk_full(error):
            raise
        later = ", then start again: the build resumes from its last whole unit" if kind.resumes else ""
        raise disk_full(spec.folder, f"free some space or move data.cache_dir{later}") from None


def _fill(spec: StoreSpec, report: Report) -> None:
    kind, ledger = spec.kind, SourceLedger(path=spec.source.path)
    with StoreWriter(spec.folder, kind.dtype, masked=kind.masked, values=kind.values) as writer:
        goes_on = "going on with an interrupted build" if writer.progress.pieces else "tokenizing"
        report(f"{spec.named}: {goes_on} in {spec.folder}")
        writer.flush(kind.fill(spec.source, ledger, writer))
        ledger.check()
        if source_fingerprint(spec.source) != spec.source_fingerprint:
            raise ValueError(f"{spec.named}: its files changed while they were read; start again")
        writer.finish({**spec.meta, "ledger": ledger.to_dict()})


def _opened(spec: StoreSpec, split: Split) -> TokenStore:
    store = open_store(spec.folder, split)
    if not store.num_tokens:
        account = spec.kind.summary(_read_ledger(spec.folder))
        raise ValueError(f"{spec.key}={spec.source.path}: no {spec.kind.unit} is left to train on ({account})")
    return store


def _held_out_split(folder: Path) -> Split:
    """What an evaluation source's store holds out: its held-out split where it has one, else all of it."""
    return "eval" if read_meta(folder)["splits"]["eval"]["documents"] else "train"


def _require_held_out(data: SourcesConfig, train: list[TokenStore], held_out: list[TokenStore], report: Report) -> None:
    """Raises ValueError if a share was to be held out and no document fell into it."""
    empty = [index for index, store in enumerate(held_out) if not store.num_tokens]
    if held_out and len(empty) == len(held_out):
        num_documents = sum(store.num_documents for store in train)
        raise ValueError(
            f"data.eval_fraction={data.eval_fraction} holds out none of the {num_documents} documents that are "
            "left; raise it, give data.eval, or set it to 0"
        )
    for index in empty:
        report(f"data.train[{index}] ({data.train[index].path}): no document of it is held out")


def _read_ledger(folder: Path) -> SourceLedger:
    return SourceLedger.from_dict(read_meta(folder)["ledger"])


def _slug(path: str) -> str:
    """A readable start for a folder's name: `my-rows-jsonl` of `data/My rows.jsonl`."""
    words = re.findall(r"[A-Za-z0-9]+", Path(path).name) or ["store"]
    return "-".join(words)[:40].lower()
