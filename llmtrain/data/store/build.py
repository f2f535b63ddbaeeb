"""One source -> one token store: read, clean, split, tokenize, write; goes on where a killed build stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmtrain.config.sections import Source
from llmtrain.data.ledger import SPLITS, SourceLedger, TokenTally
from llmtrain.data.sources.documents import iter_documents
from llmtrain.data.sources.files import source_fingerprint
from llmtrain.data.sources.text import Document
from llmtrain.data.split import split_of
from llmtrain.data.store.token_store import StoreWriter, discard_unfinished
from llmtrain.data.tokenize import Ids, Piece, TextEncoder, batch_chars
from llmtrain.protocols import Report
from llmtrain.system.files import is_disk_full

UNIT_BYTES = 64 << 20
"""Text after which a build makes what it has durable: what a kill may cost."""
REPORT_SECONDS = 10.0

Clean = Callable[[Iterator[Document], SourceLedger], Iterator[Document]]


@dataclass(frozen=True)
class Plan:
    """How one store is built."""

    key: str  # where the configuration names the source, for messages
    source: Source
    source_fingerprint: str
    folder: Path
    clean: Clean
    eval_fraction: float
    on_bad_row: Literal["error", "skip"]
    meta: dict[str, Any]  # written to store.json


def build_store(plan: Plan, encoder: TextEncoder, report: Report) -> None:
    """Build a store in its folder, whose lock the caller holds.

    What was made durable before a kill is not tokenized again; reading and cleaning are repeated, since
    their account and the duplicates seen are not stored. Raises ValueError for bad input, after deleting
    what it wrote, and for a full disk, keeping it.
    """
    try:
        _build(plan, encoder, report)
    except ValueError:
        discard_unfinished(plan.folder)
        raise
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise ValueError(
            f"{plan.folder}: the disk is full; free some space or move data.cache_dir, then start again: "
            "the build goes on from its last whole unit"
        ) from None


def _build(plan: Plan, encoder: TextEncoder, report: Report) -> None:
    source = f"{plan.key} ({plan.source.path})"
    ledger = SourceLedger(path=plan.source.path)
    documents = plan.clean(iter_documents(plan.source, plan.on_bad_row, ledger), ledger)
    pieces = _pieces(documents, encoder, plan.eval_fraction, ledger, report)
    with StoreWriter(plan.folder, encoder.dtype) as writer:
        num_pieces = writer.progress.pieces
        report(f"{source}: {'tokenizing' if not num_pieces else 'going on with an interrupted build'} in {plan.folder}")
        clock = _Clock(source, report)
        unit_bytes = 0
        for batch, ids_of_batch in encoder.encode_ahead(_batches(islice(pieces, num_pieces, None))):
            for piece, ids in zip(batch, ids_of_batch, strict=True):
                _write_piece(writer, encoder, piece, ids)
            batch_bytes = sum(len(piece.text.encode()) for piece in batch)
            num_pieces += len(batch)
            unit_bytes += batch_bytes
            clock.add(batch_bytes)
            if unit_bytes >= UNIT_BYTES:
                writer.flush(num_pieces)
                unit_bytes = 0
        writer.flush(num_pieces)
        _account(writer, encoder, ledger)
        if source_fingerprint(plan.source) != plan.source_fingerprint:
            raise ValueError(f"{source}: its files changed while they were read; start again")
        writer.finish({**plan.meta, "ledger": ledger.to_dict()})
    report(f"{source}: {_summary(ledger)}")


def _pieces(
    documents: Iterable[Document], encoder: TextEncoder, eval_fraction: float, ledger: SourceLedger, report: Report
) -> Iterator[Piece]:
    """Documents -> what is encoded in one go: whole, or cut where the tokenizer is shown to allow it."""
    can_cut: bool | None = None
    for document in documents:
        split = split_of(document, eval_fraction)
        ledger.kept[split].add(document.num_bytes)
        texts = document.pieces()
        text = next(texts)
        following = next(texts, None)
        if following is not None and can_cut is None:
            can_cut = encoder.can_cut(text)
            if not can_cut:
                report(
                    f"{document.where}: this tokenizer's ids depend on text across line ends and spaces, so long "
                    f"documents are tokenized whole: slower, and in memory"
                )
        if following is not None and not can_cut:
            text, following = "".join([text, following, *texts]), None
        first = True
        while following is not None:
            yield Piece(text, split, first, False, document.num_bytes)
            text, following, first = following, next(texts, None), False
        yield Piece(text, split, first, True, document.num_bytes)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in lists of about `batch_chars()` characters."""
    wanted = batch_chars()
    batch: list[Piece] = []
    num_chars = 0
    for piece in pieces:
        batch.append(piece)
        num_chars += len(piece.text)
        if num_chars >= wanted:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _write_piece(writer: StoreWriter, encoder: TextEncoder, piece: Piece, ids: Ids) -> None:
    before = encoder.prefix if piece.first else ()
    after = encoder.suffix if piece.last else ()
    num_unknown = int(np.count_nonzero(ids == encoder.unknown_id)) if encoder.unknown_id is not None else 0
    whole = np.concatenate([np.array(before, ids.dtype), ids, np.array(after, ids.dtype)]) if before or after else ids
    writer.write_tokens(piece.split, whole, num_text_tokens=len(ids), num_unknown_tokens=num_unknown)
    if piece.last:
        writer.end_document(piece.split, piece.document_bytes)


def _account(writer: StoreWriter, encoder: TextEncoder, ledger: SourceLedger) -> None:
    """Enter the stored tokens into the ledger, and hold it against what was read.

    Raises AssertionError where they disagree.
    """
    for split in SPLITS:
        written, kept = writer.progress.splits[split], ledger.kept[split]
        assert (written.documents, written.bytes) == (kept.documents, kept.bytes), (split, written, kept)
        ledger.tokens[split] = TokenTally(
            tokens=written.tokens,
            text_tokens=written.text_tokens,
            unknown_tokens=written.unknown_tokens,
            added_tokens=written.documents * (len(encoder.prefix) + len(encoder.suffix)),
            unpredicted_tokens=written.documents,
        )
    ledger.check()


def _summary(ledger: SourceLedger) -> str:
    """The account in one line."""
    parts = [
        f"{ledger.kept[split].documents:,} {split} documents, {ledger.tokens[split].tokens:,} tokens"
        for split in SPLITS
        if ledger.kept[split].documents
    ]
    if ledger.text_field is not None:
        parts.append(f"text from field {ledger.text_field!r}")
    parts += [f"{tally.documents:,} bad rows skipped: {reason}" for reason, tally in ledger.bad_rows.items()]
    parts += [f"{tally.documents:,} dropped: {step}" for step, tally in ledger.dropped.items()]
    parts += [f"{count:,} {suffix} files not read" for suffix, count in ledger.files_not_read.items()]
    unknown = sum(tally.unknown_tokens for tally in ledger.tokens.values())
    if unknown:
        parts.append(f"{unknown:,} unknown tokens")
    return "; ".join(parts)


class _Clock:
    """Reports how far a long build is, now and then."""

    def __init__(self, source: str, report: Report) -> None:
        self._source, self._report = source, report
        self._start = self._reported = time.monotonic()
        self._bytes = 0

    def add(self, num_bytes: int) -> None:
        self._bytes += num_bytes
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            megabytes = self._bytes / 1e6
            self._report(f"{self._source}: {megabytes:,.0f} MB tokenized, {megabytes / (now - self._start):.1f} MB/s")
            self._reported = now
