"""The token stores of a run: each source's, found or built, shared by all runs that agree on its content.

What is the same of every kind: the store's folder is named by what decides its content (`spec`); it is found, or its
shards are made (`shards`) and joined; what is read is accounted for. What rows become is the kind's own: `kinds` for
rows of chats, pairs and labelled answers, `text` for plain text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.config.data import SourcesConfig
from llmtrain.data.ledger import Ledger, SourceLedger, Split
from llmtrain.data.sources.files import Files
from llmtrain.data.sources.overlap import Read, as_read, require_disjoint
from llmtrain.data.store.documents import Damaged, finish, join
from llmtrain.data.store.shards import Plan, documents_of, make_shards, remove_shards
from llmtrain.data.store.spec import StoreSpec, StoreSpecs
from llmtrain.data.store.token_store import TokenStore, is_store, open_store, read_meta
from llmtrain.system.counted import counted
from llmtrain.system.files import FREE_CACHE, exclusive, full_disk_named
from llmtrain.system.typing import Report

LATER = f"{FREE_CACHE}, then start again: what is finished is kept"


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


def find_or_build(specs: StoreSpecs, report: Report) -> Stores:
    """The stores of a run's sources: found, or built by this process while others of the run wait for it.

    Processes of `llmtrain prepare` share the work. Raises ValueError, one line, for bad input, a source of which
    nothing is left, or a full disk.
    """
    data = specs.data
    check_sources(specs, report)
    for spec in specs:
        if not is_store(spec.folder):
            with exclusive(spec.folder, report):
                if not is_store(spec.folder):
                    _build(spec, report)
        source = _ledger(spec)
        account = spec.kind.summary(source.held_out() if spec in specs.eval else source)
        report(f"{spec.named}: {account}")
    train_stores = [_opened(spec, "train") for spec in specs.train]
    if data.eval is None:
        eval_stores = [open_store(spec.folder, "eval") for spec in specs.train] if data.eval_fraction else []
        _require_held_out(data, train_stores, eval_stores, report)
    else:
        eval_stores = [_opened(spec, _held_out_split(spec.folder)) for spec in specs.eval]
    ledger = Ledger(*([_ledger(spec) for spec in each] for each in (specs.train, specs.eval)))
    ledger.check()
    return Stores(train_stores, eval_stores, ledger)


def check_sources(specs: StoreSpecs, report: Report) -> None:
    """Look at what each source begins with: a format that fits none is found before hours of tokenizing another.

    Raises ValueError for that, and for a source that is both trained on and held out.
    """
    if specs.eval:
        require_disjoint(*([_as_read(spec, report) for spec in each] for each in (specs.train, specs.eval)))
    for spec in specs:
        if not is_store(spec.folder) and spec.read is not None and isinstance(spec.read.location, Files):
            spec.kind.try_first(spec.source)


def help_build(specs: StoreSpecs, report: Report) -> None:
    """Make shards of every store that is missing, with other processes, until all are made. Raises as a build does."""
    for spec in specs:
        if not is_store(spec.folder):
            with full_disk_named(spec.folder, LATER):
                make_shards(spec, report)


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


def _build(spec: StoreSpec, report: Report) -> None:
    """Build a store in its folder, which the caller holds.

    Raises ValueError for bad input and for a full disk, and keeps what a later build goes on from.
    """
    with full_disk_named(spec.folder, LATER):
        report(f"{spec.named}: tokenizing in {spec.folder}")
        while (plan := make_shards(spec, report)) is not None:
            try:
                _join(spec, plan, report)
            except Damaged as missing:  # perhaps removed with another store that has the same shard
                report(f"{missing}: is made again")
                Path(str(missing)).unlink(missing_ok=True)
                continue
            remove_shards(spec, plan)
            return


def _join(spec: StoreSpec, plan: Plan, report: Report) -> None:
    """Join the shards of a store. Raises Damaged."""
    ledger, layout = plan.ledger, spec.kind.layout
    joined = join(spec.folder, layout, documents_of(spec, plan))
    ledger.add(joined.ledger)
    ledger.check()
    finish(spec.folder, layout, joined, {**spec.meta, "ledger": ledger.to_dict()})
    if joined.about:
        report(f"{spec.named}: {_makers(joined.about)}")


def _makers(shards: Sequence[Mapping[str, Any]]) -> str:
    """Who made the shards of a store, and how fast: `8 shards: 5 by 2 processes on node0, 2.1 MB/s each`."""
    places = Counter((shard["host"], shard["job"]) for shard in shards)
    parts = []
    for (host, job), count in places.most_common():
        theirs = [shard for shard in shards if (shard["host"], shard["job"]) == (host, job)]
        processes = len({shard["pid"] for shard in theirs})
        speed = sum(shard["bytes"] for shard in theirs) / 1e6 / sum(shard["seconds"] for shard in theirs)
        by = counted(processes, "process", "processes")
        parts.append(f"{count:,} by {by} on {host}{'' if job is None else f', Slurm job {job}'}, {speed:.1f} MB/s each")
    return f"{counted(len(shards), 'shard')}: {'; '.join(parts)}"


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
        larger = min(0.5, round(max(2 * data.eval_fraction, 8 / num_documents), 2))  # about eight documents
        raise ValueError(
            f"data.eval_fraction={data.eval_fraction} holds out none of the {num_documents} documents that are "
            f"left, as it happens: raise it, to {larger:g} for example, give data.eval, or set it to 0"
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
