"""The token stores of a run: each source's, found or built, shared by all runs that agree on its content.

What is the same of every kind: the store's folder is named by what decides its content; it is found, or built under
its lock while other processes wait; what is read is accounted for. What rows become is the kind's own: `kinds` for
rows of chats, pairs and labelled answers, `text` for plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.config.sections import Source, SourcesConfig
from llmtrain.data.ledger import Ledger, SourceLedger, Split
from llmtrain.data.sources.files import Content, Files, HubDataset, content_of, fingerprint, resolve
from llmtrain.data.sources.overlap import Read, as_read, require_disjoint
from llmtrain.data.store.token_store import FORMAT, TokenStore, is_store, open_store, read_meta
from llmtrain.data.store.writer import Layout, StoreWriter
from llmtrain.protocols import Report
from llmtrain.system.files import FREE_CACHE, cache_root, exclusive, full_disk_named

Fill = Callable[[Source, SourceLedger, StoreWriter], None]
"""Writes all documents of a source, entered in its ledger, and makes them durable."""

READING = frozenset({"earlier", "clean", "decontaminate", "words"})
"""What of a kind's `content` decides which items there are, not what is made of one."""


@dataclass(frozen=True)
class StoreKind:
    """What the rows of a source become, and what decides it besides the source."""

    unit: str  # what a document, or several, make: "pair"
    content: Mapping[str, Any]  # all that decides a store's content besides the source; names its folder
    dtype: np.dtype[Any]  # of token ids
    fill: Fill  # raises ValueError, one line, for bad input
    summary: Callable[[SourceLedger], str]  # the account in one line
    resolve: Callable[[Source], Files | HubDataset] = resolve  # the files of a source that are read
    masked: bool = True  # tokens come with whether they are targets of the loss
    values: tuple[str, ...] = ()  # names of the numbers that each document carries
    about: Mapping[str, Any] = field(default_factory=dict)  # written to store.json in place of `content`, by key

    @property
    def layout(self) -> Layout:
        made = {name: value for name, value in self.content.items() if name not in READING}
        own, strict = (
            fingerprint({"format": FORMAT, **made, "on_bad_row": on}) for on in (made["on_bad_row"], "error")
        )
        # What was built while bad rows were errors has none, so it is the same where they are skipped.
        return Layout(self.dtype, self.masked, self.values, tokens_of=own, goes_on_from=(own, strict))


@dataclass(frozen=True)
class StoreSpec:
    """The store of one source: where it is, and how it is built."""

    key: str  # where the configuration names the source, for messages
    source: Source
    kind: StoreKind
    folder: Path
    read: Content | None  # what is read; None: the source is a finished store
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
        """What identifies their content, wherever they and their sources are."""
        return [store.name for store in (*self.train, *self.eval)]


def store_spec(key: str, source: Source, kind: StoreKind, cache_dir: str | None, report: Report) -> StoreSpec:
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


def find_or_build(
    data: SourcesConfig, train: Sequence[StoreSpec], held_out: Sequence[StoreSpec], report: Report
) -> Stores:
    """The stores of a run's sources: found, or built by this process while others wait for it.

    `held_out` are those of `data.eval`; without it, a split of `train` is held out. Raises ValueError, one line, for
    bad input, a source of which nothing is left, or a full disk.
    """
    if held_out:
        require_disjoint(*([_as_read(spec, report) for spec in specs] for specs in (train, held_out)))
    for spec in (*train, *held_out):
        if not is_store(spec.folder):
            with exclusive(spec.folder, report):
                if not is_store(spec.folder):
                    _build(spec, data.cache_dir, report)
        report(f"{spec.named}: {spec.kind.summary(_ledger(spec))}")
    train_stores = [_opened(spec, "train") for spec in train]
    if data.eval is None:
        eval_stores = [open_store(spec.folder, "eval") for spec in train] if data.eval_fraction else []
        _require_held_out(data, train_stores, eval_stores, report)
    else:
        eval_stores = [_opened(spec, _held_out_split(spec.folder)) for spec in held_out]
    ledger = Ledger(*([_ledger(spec) for spec in specs] for specs in (train, held_out)))
    ledger.check()
    return Stores(train_stores, eval_stores, ledger)


def _as_read(spec: StoreSpec, report: Report) -> Read:
    """What a source holds, of a finished store by its own account."""
    if spec.read is not None:
        return as_read(spec.key, spec.source, spec.read)
    meta = read_meta(spec.folder)
    if "parts" not in meta:
        report(f"{spec.named}: a store that does not list its files, so train and held-out data are not compared")
    holds_out = bool(meta["splits"]["eval"]["documents"])
    parts, part_of_source = tuple(meta.get("parts", ())), meta["source"]["slice"]
    return Read(spec.key, spec.source.path, parts, (), part_of_source, store=meta["name"], holds_out=holds_out)


def _build(spec: StoreSpec, cache_dir: str | None, report: Report) -> None:
    """Build a store in its folder, whose lock the caller holds.

    Raises ValueError for bad input and for a full disk, and keeps what a later build goes on from.
    """
    kind, ledger = spec.kind, SourceLedger(path=spec.source.path)
    later = f"{FREE_CACHE}, then start again: the build goes on with its last whole unit"
    with full_disk_named(spec.folder, later), StoreWriter(spec.folder, kind.layout) as writer:
        report(f"{spec.named}: tokenizing in {spec.folder}")
        kind.fill(spec.source, ledger, writer)
        ledger.check()
        now = content_of(spec.source, kind.resolve(spec.source), cache_dir, report)
        if spec.read is None or now.fingerprint != spec.read.fingerprint:
            raise ValueError(f"{spec.named}: its files changed while they were read; start again")
        writer.finish({**spec.meta, "ledger": ledger.to_dict()})


def _opened(spec: StoreSpec, split: Split) -> TokenStore:
    store = open_store(spec.folder, split)
    if not store.num_tokens:
        account = spec.kind.summary(_ledger(spec))
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


def _ledger(spec: StoreSpec) -> SourceLedger:
    """The account of a store, with the name and the files that its source has now."""
    ledger = SourceLedger.from_dict(read_meta(spec.folder)["ledger"])
    if spec.read is not None:
        ledger.path = spec.source.path
        if isinstance(spec.read.location, Files):
            ledger.files_not_read = dict(spec.read.location.not_read)
    return ledger
