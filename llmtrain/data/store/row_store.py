"""Rows that a chat template turns into tokens -> token stores with a loss mask, whatever the rows hold.

What is the same of every kind: the store's name says what decides its content; it is found, or built under its
lock from the first row; what is read is accounted for. The kind itself writes the documents of a source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmtrain.config.sections import Source, SourcesConfig
from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.ledger import SPLITS, Ledger, SourceLedger, Split, TokenTally
from llmtrain.data.sources.files import fingerprint, resolved_revision, source_fingerprint
from llmtrain.data.store.text_stores import Stores, find_or_build, read_ledger, require_held_out, slug
from llmtrain.data.store.token_store import FORMAT, StoreWriter, TokenStore, discard_unfinished, is_store, open_store
from llmtrain.protocols import Report
from llmtrain.system.files import cache_root, is_disk_full

Fill = Callable[[Source, float, SourceLedger, StoreWriter], None]
"""(source, share held out, its account, where documents go): writes all of a source, and accounts for it."""


@dataclass(frozen=True)
class RowKind:
    """What rows hold, and how they become documents."""

    name: str  # part of what names a store, and of messages
    unit: str  # what a document, or several, make: "pair"
    values: tuple[str, ...]  # names of the numbers that each document carries
    fill: Fill  # raises ValueError, one line, for bad input
    summary: Callable[[SourceLedger], str]  # the account in one line


@dataclass(frozen=True)
class RowPlan:
    """How one source's store is built."""

    key: str  # where the configuration names the source, for messages
    source: Source
    source_fingerprint: str
    kind: RowKind
    folder: Path
    eval_fraction: float
    meta: dict[str, Any]


def build_row_stores(
    data: SourcesConfig,
    settings: dict[str, Any],
    kind_of: Callable[[Source], RowKind],
    encoder: ChatEncoder,
    report: Report,
) -> Stores:
    """The stores of a run's sources: found, or built by this process while others wait for it.

    `settings` decide, beside source, kind and encoder, what a store holds. Raises ValueError, one line, for bad
    input, a source of which nothing is left, or a full disk.
    """
    fraction = data.eval_fraction if data.eval is None else 0.0

    def plans(name: str, sources: Sequence[Source], held_out: float) -> list[RowPlan]:
        return [
            _plan(f"data.{name}[{i}]", source, data.cache_dir, held_out, settings, kind_of, encoder)
            for i, source in enumerate(sources)
        ]

    train_plans, eval_plans = plans("train", data.train, fraction), plans("eval", data.eval or (), 0.0)
    for plan in (*train_plans, *eval_plans):
        find_or_build(plan.folder, partial(_build_or_tell, plan, encoder, report), report)
    train = [_opened(plan) for plan in train_plans]
    if data.eval is None:
        held_out = [open_store(plan.folder, "eval") for plan in train_plans] if fraction else []
        require_held_out(data, train, held_out, report)
    else:
        held_out = [_opened(plan) for plan in eval_plans]
    ledger = Ledger(*([read_ledger(plan.folder) for plan in plans] for plans in (train_plans, eval_plans)))
    ledger.check()
    return Stores(train, held_out, ledger)


def leave_out(bad: BadExample, on_bad_row: Literal["error", "skip"], ledger: SourceLedger, num_bytes: int) -> None:
    """Account for a row that cannot be trained on. Raises it as ValueError where bad rows are errors."""
    if on_bad_row == "error":
        raise ValueError(f"{bad}; fix the row, or set data.on_bad_row=skip")
    ledger.drop(bad.reason, num_bytes)


def write_document(
    writer: StoreWriter,
    split: Split,
    document: Encoded,
    tally: TokenTally,
    num_bytes: int,
    values: Sequence[float] = (),
    num_unknown: int = 0,
) -> None:
    """Write a document whole, and account for each of its tokens."""
    num_tokens, num_trained = len(document.input_ids), int(np.count_nonzero(document.trained))
    writer.write_tokens(split, document.input_ids, num_tokens, num_unknown, document.trained)
    writer.end_document(split, num_bytes, values)
    tally.tokens += num_tokens
    tally.text_tokens += num_tokens
    tally.unknown_tokens += num_unknown
    tally.unpredicted_tokens += 1
    tally.trained_tokens += num_trained
    tally.masked_tokens += num_tokens - num_trained


def summary_of(ledger: SourceLedger, units: str, cut: str) -> str:
    """The account in one line; `units`: what is counted; `cut`: what is told of a number of cut off tokens, at {}."""
    parts = []
    for split in SPLITS:
        num_units, tally = ledger.kept[split].documents, ledger.tokens[split]
        if num_units:
            parts.append(f"{num_units:,} {split} {units}, {tally.tokens:,} tokens")
        if tally.rows_cut:
            parts.append(f"{tally.rows_cut:,} {split} {cut.format(f'{tally.truncated_tokens:,}')}")
    return "; ".join(parts + left_out(ledger, units))


def left_out(ledger: SourceLedger, units: str) -> list[str]:
    """What is told of rows that are not in a store, by reason."""
    parts = [f"{tally.documents:,} bad rows skipped: {reason}" for reason, tally in ledger.bad_rows.items()]
    return parts + [f"{tally.documents:,} {units} dropped: {reason}" for reason, tally in ledger.dropped.items()]


def _plan(
    key: str,
    source: Source,
    cache_dir: str | None,
    eval_fraction: float,
    settings: dict[str, Any],
    kind_of: Callable[[Source], RowKind],
    encoder: ChatEncoder,
) -> RowPlan:
    if is_store(source.path):
        raise ValueError(f"{key}={source.path}: a token store is no source of preferences; give the rows")
    kind, read = kind_of(source), source_fingerprint(source)
    content = {"kind": kind.name, "encoder": encoder.fingerprint, "eval_fraction": eval_fraction, **settings}
    name = fingerprint({"format": FORMAT, "source": read, **content})
    return RowPlan(
        key=key,
        source=source,
        source_fingerprint=read,
        kind=kind,
        folder=cache_root(cache_dir) / f"{slug(source.path)}-{name}",
        eval_fraction=eval_fraction,
        meta={
            "source": source.model_dump(),
            "source_fingerprint": read,
            "revision": resolved_revision(source),
            **content,
        },
    )


def _opened(plan: RowPlan) -> TokenStore:
    store = open_store(plan.folder, "train")
    if not store.num_tokens:
        raise ValueError(
            f"{plan.key}={plan.source.path}: no {plan.kind.unit} is left to train on; ledger of {plan.folder} says why"
        )
    return store


def _build_or_tell(plan: RowPlan, encoder: ChatEncoder, report: Report) -> None:
    values = plan.kind.values
    discard_unfinished(plan.folder, values)  # of a build that was killed: rows are tokenized again from the first
    try:
        _build(plan, encoder, report)
    except ValueError:
        discard_unfinished(plan.folder, values)
        raise
    except OSError as error:
        discard_unfinished(plan.folder, values)
        if not is_disk_full(error):
            raise
        raise ValueError(f"{plan.folder}: the disk is full; free some space or move data.cache_dir") from None


def _build(plan: RowPlan, encoder: ChatEncoder, report: Report) -> None:
    ledger = SourceLedger(path=plan.source.path)
    with StoreWriter(plan.folder, encoder.dtype, masked=True, values=plan.kind.values) as writer:
        plan.kind.fill(plan.source, plan.eval_fraction, ledger, writer)
        writer.flush(ledger.read.documents)
        ledger.check()
        if source_fingerprint(plan.source) != plan.source_fingerprint:
            raise ValueError(f"{plan.key} ({plan.source.path}): its files changed while they were read; start again")
        writer.finish({**plan.meta, "ledger": ledger.to_dict()})
    report(f"{plan.key} ({plan.source.path}): {plan.kind.summary(ledger)}")
