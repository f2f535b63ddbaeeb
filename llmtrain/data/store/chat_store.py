"""Instruction rows -> token stores with a loss mask: what `stores.py` and `build.py` are for plain text.

rows (`conversations.py`) -> ids and mask (`chat.py`) -> no longer than `max_seq_len` -> store. Every row that is
left out, and every token that is cut off, is counted under its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.config.sections import ChatDataConfig, Source
from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.formats.instructions import Example, iter_examples
from llmtrain.data.ledger import SPLITS, Ledger, SourceLedger, Split
from llmtrain.data.sources.files import fingerprint, resolved_revision, source_fingerprint
from llmtrain.data.split import eval_share
from llmtrain.data.store.row_store import leave_out, left_out, write_document
from llmtrain.data.store.text_stores import Stores, find_or_build, read_ledger, require_held_out, slug
from llmtrain.data.store.token_store import FORMAT, StoreWriter, TokenStore, discard_unfinished, is_store, open_store
from llmtrain.protocols import Report
from llmtrain.system.files import cache_root, is_disk_full

BATCH_ROWS = 512  # rendered and tokenized at a time, on all cores
TOO_LONG = "longer than data.max_seq_len"
NOTHING_LEFT = "no trained token within data.max_seq_len"


@dataclass(frozen=True)
class ChatPlan:
    """How one source's store is built."""

    key: str  # where the configuration names the source, for messages
    source: Source
    source_fingerprint: str
    folder: Path
    eval_fraction: float
    meta: dict[str, Any]


def build_chat_stores(data: ChatDataConfig, encoder: ChatEncoder, *, report: Report) -> Stores:
    """The token stores of a tuning run's sources: found, or built by this process while others wait for it.

    Raises ValueError, one line, for bad input, a source of which nothing is left, or a full disk.
    """
    fraction = data.eval_fraction if data.eval is None else 0.0
    train_plans = [_plan(f"data.train[{i}]", source, data, fraction, encoder) for i, source in enumerate(data.train)]
    eval_plans = [_plan(f"data.eval[{i}]", source, data, 0.0, encoder) for i, source in enumerate(data.eval or ())]
    for plan in (*train_plans, *eval_plans):
        find_or_build(plan.folder, partial(_build_or_tell, plan, data, encoder, report), report)
        ledger = read_ledger(plan.folder)
        report(f"{plan.key} ({plan.source.path}): {ledger.row_format} rows; {_summary(ledger)}")
    train = [_opened(plan, "train") for plan in train_plans]
    if data.eval is None:
        held_out = [open_store(plan.folder, "eval") for plan in train_plans] if fraction else []
        require_held_out(data, train, held_out, report)
    else:
        held_out = [_opened(plan, "train") for plan in eval_plans]
    account = Ledger(*([read_ledger(plan.folder) for plan in plans] for plans in (train_plans, eval_plans)))
    account.check()
    return Stores(train, held_out, account)


def fit(document: Encoded, max_seq_len: int, on_long_row: str) -> list[Encoded]:
    """A document as it is, without its end, in pieces, or not at all, so that none is longer than `max_seq_len`.

    A piece's first token has nothing before it, so it is never a target; pieces without a target are left out.
    """
    if len(document.input_ids) <= max_seq_len:
        return [document]
    if on_long_row == "drop":
        return []
    length = len(document.input_ids) if on_long_row == "split" else max_seq_len
    pieces = []
    for start in range(0, length, max_seq_len):
        part = slice(start, start + max_seq_len)
        trained = document.trained[part].copy()
        trained[0] = False
        if trained.any():
            pieces.append(Encoded(document.input_ids[part], trained))
    return pieces


def _plan(key: str, source: Source, data: ChatDataConfig, eval_fraction: float, encoder: ChatEncoder) -> ChatPlan:
    if is_store(source.path):
        raise ValueError(f"{key}={source.path}: a token store has no turns any more; give the rows it was made of")
    read = source_fingerprint(source)
    content = {
        "encoder": encoder.fingerprint,
        "eval_fraction": eval_fraction,
        "max_seq_len": data.max_seq_len,
        "on_long_row": data.on_long_row,
        "on_bad_row": data.on_bad_row,
    }
    name = fingerprint({"format": FORMAT, "source": read, **content})
    return ChatPlan(
        key=key,
        source=source,
        source_fingerprint=read,
        folder=cache_root(data.cache_dir) / f"{slug(source.path)}-{name}",
        eval_fraction=eval_fraction,
        meta={
            "source": source.model_dump(),
            "source_fingerprint": read,
            "revision": resolved_revision(source),
            **content,
        },
    )


def _opened(plan: ChatPlan, split: Split) -> TokenStore:
    store = open_store(plan.folder, split)
    if not store.num_tokens:
        raise ValueError(
            f"{plan.key}={plan.source.path}: no row is left to train on ({_summary(read_ledger(plan.folder))})"
        )
    return store


def _build_or_tell(plan: ChatPlan, data: ChatDataConfig, encoder: ChatEncoder, report: Report) -> None:
    discard_unfinished(plan.folder)  # of a build that was killed: rows are tokenized again from the first
    try:
        _build(plan, data, encoder, report)
    except ValueError:
        discard_unfinished(plan.folder)
        raise
    except OSError as error:
        discard_unfinished(plan.folder)
        if not is_disk_full(error):
            raise
        raise ValueError(f"{plan.folder}: the disk is full; free some space or move data.cache_dir") from None


def _build(plan: ChatPlan, data: ChatDataConfig, encoder: ChatEncoder, report: Report) -> None:
    ledger = SourceLedger(path=plan.source.path)
    examples = iter_examples(plan.source, data.on_bad_row, ledger, report)
    with StoreWriter(plan.folder, encoder.dtype, masked=True) as writer:
        for example, documents in _encoded(examples, encoder):
            if isinstance(documents, BadExample):
                leave_out(documents, data.on_bad_row, ledger, example.num_bytes)
                continue
            split: Split = "eval" if eval_share(example) < plan.eval_fraction else "train"
            _write(writer, split, example, documents, data, ledger, encoder.unknown_id)
        writer.flush(ledger.read.documents)
        ledger.check()
        if source_fingerprint(plan.source) != plan.source_fingerprint:
            raise ValueError(f"{plan.key} ({plan.source.path}): its files changed while they were read; start again")
        writer.finish({**plan.meta, "ledger": ledger.to_dict()})


def _encoded(
    examples: Iterator[Example], encoder: ChatEncoder
) -> Iterator[tuple[Example, Sequence[Encoded] | BadExample]]:
    while batch := list(islice(examples, BATCH_ROWS)):
        yield from zip(batch, encoder.encode(batch), strict=True)


def _write(
    writer: StoreWriter,
    split: Split,
    example: Example,
    documents: Sequence[Encoded],
    data: ChatDataConfig,
    ledger: SourceLedger,
    unknown_id: int | None,
) -> None:
    """Write what is left of a row's documents, and account for all of it."""
    tally = ledger.tokens[split]
    kept = [fit(document, data.max_seq_len, data.on_long_row) for document in documents]
    num_tokens = sum(len(document.input_ids) for document in documents)
    num_kept = sum(len(piece.input_ids) for pieces in kept for piece in pieces)
    if not num_kept:
        tally.dropped_tokens += num_tokens
        ledger.drop(TOO_LONG if data.on_long_row == "drop" else NOTHING_LEFT, example.num_bytes)
        return
    tally.truncated_tokens += num_tokens - num_kept
    tally.rows_cut += num_kept < num_tokens
    tally.rows_split += any(len(pieces) > 1 for pieces in kept)
    tally.rows_unrolled += len(documents) > 1
    ledger.kept[split].add(example.num_bytes)
    pieces = [piece for pieces in kept for piece in pieces]
    for i, piece in enumerate(pieces):
        num_unknown = int(np.count_nonzero(piece.input_ids == unknown_id)) if unknown_id is not None else 0
        num_bytes = example.num_bytes if i == 0 else 0  # a row's bytes count once
        write_document(writer, split, piece, tally, num_bytes, num_unknown=num_unknown)


def _summary(ledger: SourceLedger) -> str:
    """The account in one line."""
    parts = []
    for split in SPLITS:
        rows, tally = ledger.kept[split].documents, ledger.tokens[split]
        if rows:
            share = tally.trained_tokens / tally.tokens
            parts.append(f"{rows:,} {split} rows, {tally.tokens:,} tokens, {share:.0%} of them trained")
        cut = {"cut short": tally.rows_cut, "split": tally.rows_split, "unrolled by turn": tally.rows_unrolled}
        parts += [f"{count:,} {split} rows {what}" for what, count in cut.items() if count]
        if tally.truncated_tokens:
            parts.append(f"{tally.truncated_tokens:,} {split} tokens cut off")
    unknown = sum(tally.unknown_tokens for tally in ledger.tokens.values())
    parts += [f"{unknown:,} unknown tokens"] if unknown else []
    return "; ".join(parts + left_out(ledger, "rows"))
