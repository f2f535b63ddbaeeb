"""A store is built in shards, which any number of processes make together, on all machines that share the cache.

Every process reads the whole source in order, since what is kept of a text may depend on all before it; that takes a
twentieth of the time. It cuts the items into shards of a few megabytes. Each is made by the first that claims it and
passed over by the others; it is a folder, named by a digest of its items and by what makes tokens of them:

    shards/6c1f...-09ab.../lease-000001.json    a process makes it (`system.lease`)
    shards/6c1f...-09ab.../documents.npz        it is made
    shards/e7d2.../plan.json                    the shards of a store, in order, as the first one to read all found them

A kill costs the shard that was being made. A shard is the same in every source that holds its items, so a source that
was corrected after a bad row finds what was made before the change.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from llmtrain.data.ledger import SourceLedger
from llmtrain.data.store.documents import Documents
from llmtrain.data.store.spec import StoreKind, StoreSpec
from llmtrain.data.store.token_store import is_store
from llmtrain.system.counted import counted
from llmtrain.system.files import is_disk_full, write_json
from llmtrain.system.lease import POLL_SECONDS, Lease, LeaseLost, Watch, this_process, try_to_take
from llmtrain.system.typing import Report

SHARD_BYTES = 8 << 20
"""Text of a shard: seconds of work for a core, and three of them are in memory at once."""
REPORT_SECONDS = 10.0

FOLDER, PLAN, DOCUMENTS = "shards", "plan.json", "documents.npz"


@dataclass(frozen=True)
class Plan:
    """What a store is put together from."""

    shards: tuple[str, ...]  # their names, in order; one may come twice
    ledger: SourceLedger  # the account of reading the source


def make_shards(spec: StoreSpec, report: Report) -> Plan | None:
    """The shards of a store, once all are made, by this process or others; None if the store is finished before.

    Raises ValueError, one line, for bad input; what is made by then is kept.
    """
    return _Making(spec, report).run()


def documents_of(spec: StoreSpec, plan: Plan) -> list[Path]:
    """The files of a store's shards, in order."""
    return [_made(spec, name) or _shard_folder(spec, spec.kind.makes[0], name) / DOCUMENTS for name in plan.shards]


def remove_shards(spec: StoreSpec, plan: Plan) -> None:
    """Remove the shards of a store that is finished."""
    for path in {*documents_of(spec, plan), _plan_path(spec)}:
        shutil.rmtree(path.parent, ignore_errors=True)


class _Making:
    """One process's part in making the shards of a store."""

    def __init__(self, spec: StoreSpec, report: Report) -> None:
        self._spec, self._report = spec, report
        self._watches: dict[Path, Watch] = defaultdict(Watch)
        self._progress = _Progress(spec.named, report)

    def run(self) -> Plan | None:
        is_waiting, taken = False, dict[str, Lease]()
        plan = _read_plan(self._spec)
        if plan is not None and (num_missing := len(self._missing(plan))):
            self._report(f"{self._spec.named}: {num_missing:,} of {counted(len(plan.shards), 'shard')} missing")
        while not is_store(self._spec.folder):
            if plan is None or taken:
                plan = self._read_through(taken)
                continue
            missing = self._missing(plan)
            if not missing:
                return plan
            for name in missing:  # held by others, or by none: one that was killed, or that made it of another source
                if (lease := self._claimed(self._folder(name), DOCUMENTS)) is not None:
                    taken = {name: lease}
                    break
            else:
                if not is_waiting:
                    self._report(
                        f"{self._spec.named}: waiting for {counted(len(missing), 'shard')} that other processes make"
                    )
                    is_waiting = True
                time.sleep(POLL_SECONDS)
        return None

    def _missing(self, plan: Plan) -> list[str]:
        return [name for name in plan.shards if _made(self._spec, name) is None]

    def _read_through(self, taken: dict[str, Lease]) -> Plan | None:
        """Read the whole source, and make each shard that no process makes; `taken`: claimed already.

        None if another process finishes the store meanwhile.
        """
        spec, names, ledger = self._spec, list[str](), SourceLedger(path=self._spec.source.path)
        num_found = 0  # shards at the beginning that are there
        with ThreadPoolExecutor(max_workers=1) as pool:
            making: Future[None] | None = None  # of one shard, while the next is read
            try:
                for name, items in _cut(spec.kind, spec.kind.read(spec.source, ledger)):
                    names.append(name)
                    self._progress.read(items, spec.kind)
                    if making is not None:
                        making.result()  # before the next is claimed, so that nothing is claimed that has to wait
                    if is_store(spec.folder):
                        return None
                    folder = self._folder(name)
                    lease = taken.pop(name, None)
                    if _made(spec, name) is not None:
                        num_found += len(names) == num_found + 1
                    elif lease is None:
                        lease = self._claimed(folder, DOCUMENTS)
                    making = None if lease is None else pool.submit(self._make, folder, lease, items)
            finally:
                for lease in taken.values():
                    lease.release()
                taken.clear()
                if making is not None:
                    making.result()  # raises for a row before the one that reading has met
                if num_found:
                    self._report(f"{spec.named}: {counted(num_found, 'shard')} at the beginning made already")
        spec.require_unchanged(self._report)
        plan = Plan(tuple(names), ledger)
        self._keep(plan)
        return plan

    def _make(self, folder: Path, lease: Lease, items: list[Any]) -> None:
        """Make a shard of its items; leave it if another process has taken it over meanwhile."""
        kind, started = self._spec.kind, time.monotonic()
        try:
            documents = Documents(kind.layout)
            kind.make(items, documents)
            num_bytes = sum(map(kind.item_bytes, items))
            holder = this_process()
            about = {"host": holder.host, "job": holder.job, "pid": holder.pid, "bytes": num_bytes}
            lease.require()
            documents.save(folder / DOCUMENTS, {**about, "seconds": time.monotonic() - started})
            self._progress.made(num_bytes)
        except LeaseLost as lost:
            self._report(str(lost))
        finally:
            lease.release()

    def _keep(self, plan: Plan) -> None:
        """Write the plan down, unless another process does just now."""
        path = _plan_path(self._spec)
        if (lease := self._claimed(path.parent, PLAN)) is not None:
            write_json(path, {"shards": plan.shards, "ledger": plan.ledger.to_dict()})
            lease.release()

    def _folder(self, name: str) -> Path:
        return _shard_folder(self._spec, self._spec.kind.makes[0], name)

    def _claimed(self, folder: Path, made: str) -> Lease | None:
        """The right to make what a folder is for; None if it is made, or another process has the right.

        Raises ValueError for a folder that cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lease = try_to_take(folder, self._watches[folder], self._report)
            if isinstance(lease, str):
                return None
            if not (folder / made).is_file():
                return lease
            lease.release()
        except FileNotFoundError:  # it was removed just now, as its store is finished
            return None
        except OSError as error:
            if is_disk_full(error):
                raise
            raise ValueError(f"{folder}: cannot be written ({error.strerror}); set data.cache_dir to another") from None
        return None


class _Progress:
    """Reports how far a long build is, every REPORT_SECONDS."""

    def __init__(self, named: str, report: Report) -> None:
        self._named, self._report = named, report
        self._start = self._reported = time.monotonic()
        self._read = self._made = 0

    def read(self, items: list[Any], kind: StoreKind[Any]) -> None:
        self._read += sum(map(kind.item_bytes, items))
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            read, made = self._read / 1e6, self._made / 1e6
            speed = made / (now - self._start)
            self._report(f"{self._named}: {read:,.0f} MB read, {made:,.0f} MB tokenized here, {speed:.1f} MB/s")
            self._reported = now

    def made(self, num_bytes: int) -> None:
        self._made += num_bytes


def _cut(kind: StoreKind[Any], items: Iterator[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Items in lists of about SHARD_BYTES, each with a digest of all that decides what is made of them."""
    held, num_bytes, hasher = list[Any](), 0, xxhash.xxh3_128()
    for item in items:
        content = kind.item_content(item)
        hasher.update(len(content).to_bytes(8, "little"))
        hasher.update(content)
        held.append(item)
        num_bytes += kind.item_bytes(item)
        if num_bytes >= SHARD_BYTES:
            yield hasher.hexdigest(), held
            held, num_bytes, hasher = [], 0, xxhash.xxh3_128()
    if held:
        yield hasher.hexdigest(), held


def _made(spec: StoreSpec, name: str) -> Path | None:
    """The documents of a shard; None if it is not made."""
    paths = (_shard_folder(spec, makes, name) / DOCUMENTS for makes in spec.kind.makes)
    return next((path for path in paths if path.is_file()), None)


def _shard_folder(spec: StoreSpec, makes: str, name: str) -> Path:
    return spec.folder.parent / FOLDER / f"{makes}-{name}"


def _plan_path(spec: StoreSpec) -> Path:
    return spec.folder.parent / FOLDER / spec.folder.name / PLAN


def _read_plan(spec: StoreSpec) -> Plan | None:
    """The plan of a store, where a process has read all of its source."""
    try:
        tree = json.loads(_plan_path(spec).read_text(encoding="utf-8"))
        return Plan(tuple(tree["shards"]), SourceLedger.from_dict(tree["ledger"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is none yet, or it is of another version
