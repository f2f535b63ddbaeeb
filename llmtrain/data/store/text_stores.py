"""The token stores of a run: each source's, found or built, shared by all runs that agree on its content."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmtrain.config.sections import CleanConfig, DataConfig, Source, SourcesConfig
from llmtrain.data.ledger import Ledger, SourceLedger, Split
from llmtrain.data.sources.clean import Cleaner
from llmtrain.data.sources.documents import iter_documents
from llmtrain.data.sources.files import fingerprint, resolved_revision, source_fingerprint
from llmtrain.data.sources.text import Document
from llmtrain.data.split import eval_share
from llmtrain.data.store.build import Clean, Plan, build_store
from llmtrain.data.store.token_store import FORMAT, TokenStore, is_store, open_store, read_meta
from llmtrain.data.tokenize import TextEncoder, tokenizer_fingerprint
from llmtrain.protocols import Report
from llmtrain.system.files import cache_root, exclusive


@dataclass(frozen=True)
class Stores:
    """The stores of a run, one a source, in the order of the configuration, and the account of all."""

    train: list[TokenStore]
    eval: list[TokenStore]  # empty where nothing is held out
    ledger: Ledger

    @property
    def names(self) -> list[str]:
        """The folders' names, which stand for their content."""
        return [store.path.name for store in (*self.train, *self.eval)]


def build_stores(data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, report: Report) -> Stores:
    """The token stores of a run's sources: found, or built by this process while others wait for it.

    Raises ValueError, one line, for bad input, a store of another tokenizer, an empty split or a full disk.
    """
    binding = _Tokenizer(tokenizer.name_or_path, tokenizer_fingerprint(tokenizer), TextEncoder(tokenizer))
    eval_fraction = data.eval_fraction if data.eval is None else 0.0
    train_folders = _train_folders(data, eval_fraction, binding, report)
    train = [open_store(folder, "train") for folder in train_folders]
    for index, store in enumerate(train):
        if not store.num_tokens:
            raise ValueError(f"data.train[{index}]={data.train[index].path}: no document is left to train on")
    if data.eval is None:
        eval_folders: list[Path] = []
        held_out = [open_store(folder, "eval") for folder in train_folders] if eval_fraction else []
        require_held_out(data, train, held_out, report)
    else:
        eval_folders = _eval_folders(data, data.eval, binding, report)
        held_out = [open_store(folder, _held_out_split(folder)) for folder in eval_folders]
    ledger = Ledger([read_ledger(folder) for folder in train_folders], [read_ledger(path) for path in eval_folders])
    ledger.check()
    return Stores(train, held_out, ledger)


@dataclass(frozen=True)
class _Tokenizer:
    """What ties a store to a tokenizer."""

    name: str
    fingerprint: str
    encoder: TextEncoder


def _train_folders(data: DataConfig, eval_fraction: float, binding: _Tokenizer, report: Report) -> list[Path]:
    """The store of each training source, finished; every source is looked up before the first is read."""
    cleaner = Cleaner(data.clean, data.train, data.on_bad_row)
    wanted: list[Path | Plan] = []
    for index, source in enumerate(data.train):
        key = f"data.train[{index}]"
        if is_store(source.path):
            wanted.append(_given_store(key, source, data, binding))
            continue
        content = {
            "earlier": [source_fingerprint(each) for each in data.train[:index]] if cleaner.spans_sources else [],
            "clean": data.clean.model_dump(),
            "decontaminate": [source_fingerprint(Source(path=path)) for path in data.clean.decontaminate],
            "eval_fraction": eval_fraction,
            "on_bad_row": data.on_bad_row,
        }
        wanted.append(_plan(key, source, content, partial(cleaner.clean, index), cache_root(data.cache_dir), binding))
    if eval_fraction and any(isinstance(want, Plan) and not is_store(want.folder) for want in wanted):
        _require_some_to_hold_out(data)
    return [want if isinstance(want, Path) else _built(want, binding, report) for want in wanted]


def _eval_folders(data: DataConfig, sources: Sequence[Source], binding: _Tokenizer, report: Report) -> list[Path]:
    """The store of each held-out source, finished; they are read as they are, without cleaning."""
    content = {
        "earlier": [],
        "clean": CleanConfig().model_dump(),
        "decontaminate": [],
        "eval_fraction": 0.0,
        "on_bad_row": data.on_bad_row,
    }
    folders = []
    for index, source in enumerate(sources):
        key = f"data.eval[{index}]"
        if is_store(source.path):
            folders.append(_given_store(key, source, data, binding))
        else:
            plan = _plan(key, source, content, _keep_all, cache_root(data.cache_dir), binding)
            folders.append(_built(plan, binding, report))
    return folders


def _keep_all(documents: Iterator[Document], ledger: SourceLedger) -> Iterator[Document]:
    """No cleaning."""
    return documents


def _plan(key: str, source: Source, content: Mapping[str, Any], clean: Clean, cache: Path, binding: _Tokenizer) -> Plan:
    """How a source's store is built; `content` is what decides it beside source and tokenizer."""
    read = source_fingerprint(source)
    name = fingerprint({"format": FORMAT, "source": read, "tokenizer": binding.fingerprint, **content})
    return Plan(
        key=key,
        source=source,
        source_fingerprint=read,
        folder=cache / f"{slug(source.path)}-{name}",
        clean=clean,
        eval_fraction=content["eval_fraction"],
        on_bad_row=content["on_bad_row"],
        meta={
            "source": source.model_dump(),
            "source_fingerprint": read,
            "revision": resolved_revision(source),
            "tokenizer": {"name": binding.name, "fingerprint": binding.fingerprint},
            **content,
        },
    )


def _built(plan: Plan, binding: _Tokenizer, report: Report) -> Path:
    return find_or_build(plan.folder, lambda: build_store(plan, binding.encoder, report), report)


def find_or_build(folder: Path, build: Callable[[], None], report: Report) -> Path:
    """The folder of a store, finished by this process or another."""
    if not is_store(folder):
        with exclusive(folder, report):
            if not is_store(folder):
                build()
    return folder


def _given_store(key: str, source: Source, data: DataConfig, binding: _Tokenizer) -> Path:
    """A store that the configuration names itself.

    Raises ValueError where it is of another tokenizer, or where options ask for what only a build can do.
    """
    path = Path(source.path).expanduser()
    meta = read_meta(path)
    built_for = meta["tokenizer"]
    if built_for["fingerprint"] != binding.fingerprint:
        raise ValueError(
            f"{key}={path}: a store of the tokenizer {built_for['name']} ({built_for['fingerprint'][:8]}), "
            f"not of {binding.name} ({binding.fingerprint[:8]}); build it anew from its text"
        )
    reading = source.model_dump(exclude={"path", "weight"})
    changed = [name for name, value in reading.items() if value != Source.model_fields[name].default]
    if changed:
        raise ValueError(f"{key}={path}: a store is used as it is: {', '.join(changed)} would do nothing")
    if key.startswith("data.train"):
        if data.clean != CleanConfig():
            raise ValueError(f"{key}={path}: a store is used as it is: data.clean would do nothing")
        split_asked = data.eval is None and "eval_fraction" in data.model_fields_set
        if split_asked and data.eval_fraction != meta["eval_fraction"]:
            raise ValueError(
                f"{key}={path}: a store built with data.eval_fraction={meta['eval_fraction']}, "
                f"not {data.eval_fraction}; leave it out, or build the store anew from its text"
            )
    return path


def _held_out_split(folder: Path) -> Split:
    """What an evaluation source's store holds out: its held-out split where it has one, else all of it."""
    return "eval" if read_meta(folder)["splits"]["eval"]["documents"] else "train"


def _require_some_to_hold_out(data: DataConfig) -> None:
    """Raises ValueError, before anything is tokenized, where no document's hash falls into the held-out share.

    Reads no further than the first document that does: some 1 / eval_fraction documents.
    """
    smallest = 1.0
    num_documents = 0
    for source in data.train:
        if is_store(source.path):
            return
        for document in iter_documents(source, data.on_bad_row, SourceLedger(path=source.path)):
            num_documents += 1
            smallest = min(smallest, eval_share(document))
            if smallest < data.eval_fraction:
                return
    raise ValueError(
        f"data.eval_fraction={data.eval_fraction} holds out none of {num_documents} documents; set it above "
        f"{smallest:.3g}, or to 0, or give data.eval (of a single text file, `slice: 90%:100%` for instance)"
    )


def require_held_out(data: SourcesConfig, train: list[TokenStore], held_out: list[TokenStore], report: Report) -> None:
    """Raises ValueError where a share was to be held out and no document fell into it."""
    empty = [index for index, store in enumerate(held_out) if not store.num_tokens]
    if held_out and len(empty) == len(held_out):
        num_documents = sum(store.num_documents for store in train)
        raise ValueError(
            f"data.eval_fraction={data.eval_fraction} holds out none of the {num_documents} documents that are "
            "left; raise it, give data.eval, or set it to 0"
        )
    for index in empty:
        report(f"data.train[{index}] ({data.train[index].path}): no document of it is held out")


def read_ledger(folder: Path) -> SourceLedger:
    return SourceLedger.from_dict(read_meta(folder)["ledger"])


def slug(path: str) -> str:
    """A readable start for a folder's name."""
    words = re.findall(r"[A-Za-z0-9]+", Path(path).name) or ["store"]
    return "-".join(words)[:40].lower()
