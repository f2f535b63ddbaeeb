"""Plain text -> token stores: read, clean, split, tokenize, write; an interrupted build resumes where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmtrain.config.sections import CleanConfig, DataConfig, Source
from llmtrain.data.ledger import SPLITS, SourceLedger, TokenTally, text_summary
from llmtrain.data.sources.clean import Cleaner
from llmtrain.data.sources.documents import iter_documents
from llmtrain.data.sources.files import content_of, resolve
from llmtrain.data.sources.ngrams import WORD
from llmtrain.data.sources.text import Document
from llmtrain.data.split import eval_share, split_of
from llmtrain.data.store.build import StoreKind, Stores, StoreSpec, find_or_build, store_spec
from llmtrain.data.store.token_store import is_store, read_meta
from llmtrain.data.store.units import Units
from llmtrain.data.store.writer import StoreWriter
from llmtrain.data.tokenize import Ids, Piece, TextEncoder, batch_chars, tokenizer_fingerprint
from llmtrain.protocols import Report

REPORT_SECONDS = 10.0
SAMPLE_CHARS = 1 << 18
"""Text of each split that is decoded again, to see what the tokenizer loses."""

Read = Callable[[Source, SourceLedger], Iterator[Document]]
"""The documents of a source that are kept; everything else is entered in the ledger."""


@dataclass(frozen=True)
class _Tokenizer:
    """What ties a store to a tokenizer."""

    name: str
    fingerprint: str
    encoder: TextEncoder


def build_text_stores(data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, report: Report) -> Stores:
    """The token stores of a run's sources: found, or built by this process while others wait for it.

    Raises ValueError, one line, for bad input, a store of another tokenizer, an empty split or a full disk.
    """
    binding = _Tokenizer(tokenizer.name_or_path, tokenizer_fingerprint(tokenizer), TextEncoder(tokenizer))
    eval_fraction = data.eval_fraction if data.eval is None else 0.0
    train = _train_specs(data, eval_fraction, binding, report)
    held_out = _eval_specs(data, binding, report)
    if eval_fraction and not all(is_store(spec.folder) for spec in train):
        _require_some_to_hold_out(data)
    return find_or_build(data, train, held_out, report)


def _train_specs(data: DataConfig, eval_fraction: float, binding: _Tokenizer, report: Report) -> list[StoreSpec]:
    cleaner = Cleaner(data.clean, data.train, data.on_bad_row, data.cache_dir)

    def read(source: Source) -> str:
        return content_of(source, resolve(source), data.cache_dir, report).fingerprint

    evaluated = sorted(read(Source(path=path, split="all")) for path in data.clean.decontaminate)
    specs = []
    for index, source in enumerate(data.train):
        content: dict[str, Any] = {
            "earlier": [read(each) for each in data.train[:index]] if cleaner.spans_sources else [],
            "clean": data.clean.model_dump(exclude={"decontaminate"}),
            "decontaminate": evaluated,
            "eval_fraction": eval_fraction,
            "on_bad_row": data.on_bad_row,
        }
        if data.clean.near_dedup is not None or data.clean.decontaminate:
            content["words"] = WORD.pattern
        kind = _text_kind(content, partial(_read_cleaned, cleaner, index, data), binding, report)
        specs.append(_spec(f"data.train[{index}]", source, kind, data, binding, report))
    return specs


def _eval_specs(data: DataConfig, binding: _Tokenizer, report: Report) -> list[StoreSpec]:
    """The stores of held-out sources, which are read as they are, without cleaning."""
    content = {
        "earlier": [],
        "clean": CleanConfig().model_dump(exclude={"decontaminate"}),
        "decontaminate": [],
        "eval_fraction": 0.0,
        "on_bad_row": data.on_bad_row,
    }
    kind = _text_kind(content, partial(_read, data), binding, report)
    return [
        _spec(f"data.eval[{index}]", source, kind, data, binding, report)
        for index, source in enumerate(data.eval or ())
    ]


def _read(data: DataConfig, source: Source, ledger: SourceLedger) -> Iterator[Document]:
    return iter_documents(source, data.on_bad_row, ledger)


def _read_cleaned(
    cleaner: Cleaner, index: int, data: DataConfig, source: Source, ledger: SourceLedger
) -> Iterator[Document]:
    return cleaner.clean(index, _read(data, source, ledger), ledger)


def _text_kind(content: Mapping[str, Any], read: Read, binding: _Tokenizer, report: Report) -> StoreKind:
    """Documents of plain text; `content` is what decides a store besides source and tokenizer."""
    return StoreKind(
        unit="document",
        content={"kind": "text", "tokenizer": binding.fingerprint, **content},
        about={"tokenizer": {"name": binding.name, "fingerprint": binding.fingerprint}},
        dtype=binding.encoder.dtype,
        fill=partial(_fill, read, binding.encoder, content["eval_fraction"], report),
        summary=text_summary,
        masked=False,
    )


def _spec(
    key: str, source: Source, kind: StoreKind, data: DataConfig, binding: _Tokenizer, report: Report
) -> StoreSpec:
    """The store of a source in the cache, or the finished store that the configuration itself names."""
    if not is_store(source.path):
        return store_spec(key, source, kind, data.cache_dir, report)
    folder = Path(source.path).expanduser()
    _require_usable(key, source, read_meta(folder), data, binding)
    return StoreSpec(key, source, kind, folder, read=None, meta={})


def _require_usable(key: str, source: Source, meta: Mapping[str, Any], data: DataConfig, binding: _Tokenizer) -> None:
    """Raises ValueError for a store of another kind or tokenizer, and options that only a build can follow."""
    path = Path(source.path).expanduser()
    if meta["kind"] != "text":
        raise ValueError(f"{key}={path}: a store of {meta['kind']}, not of text; give the text or rows to train on")
    built_for = meta["tokenizer"]
    if built_for["fingerprint"] != binding.fingerprint:
        raise ValueError(
            f"{key}={path}: a store of the tokenizer {built_for['name']} ({built_for['fingerprint'][:8]}), "
            f"not of {binding.name} ({binding.fingerprint[:8]}); build it again from its text"
        )
    reading = source.model_dump(exclude={"path", "weight"})
    changed = [name for name, value in reading.items() if value != Source.model_fields[name].default]
    if changed:
        raise ValueError(f"{key}={path}: a store is used unchanged: {', '.join(changed)} would do nothing")
    if key.startswith("data.train"):
        if data.clean != CleanConfig():
            raise ValueError(f"{key}={path}: a store is used unchanged: data.clean would do nothing")
        if data.eval is None and data.asks_for_a_split and data.eval_fraction != meta["eval_fraction"]:
            raise ValueError(
                f"{key}={path}: a store built with data.eval_fraction={meta['eval_fraction']}, "
                f"not {data.eval_fraction}; leave it out, or build the store again from its text"
            )


def _require_some_to_hold_out(data: DataConfig) -> None:
    """Raises ValueError, before anything is tokenized, if no document's hash falls into the held-out share.

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


def _fill(
    read: Read,
    encoder: TextEncoder,
    eval_fraction: float,
    report: Report,
    source: Source,
    ledger: SourceLedger,
    writer: StoreWriter,
) -> None:
    """Write the documents of a source; a build that goes on repeats reading and cleaning, but not tokenizing."""
    clock = _Clock(source.path, report)
    with Units(writer, _content, report) as units:
        pieces = units.remaining(_pieces(read(source, ledger), encoder, eval_fraction, ledger, report))
        for batch, ids_of_batch in encoder.encode_ahead(_batches(pieces)):
            for piece, ids in zip(batch, ids_of_batch, strict=True):
                _write_piece(writer, encoder, piece, ids)
                units.done(piece, len(piece.text))
            clock.add(sum(len(piece.text.encode()) for piece in batch))
    _account(writer, encoder, ledger)


def _content(piece: Piece) -> bytes:
    """All of a piece that decides what is stored of it."""
    return (
        b"%d %d %d %d " % (piece.split == "eval", piece.first, piece.last, piece.document_bytes) + piece.text.encode()
    )


def _pieces(
    documents: Iterable[Document], encoder: TextEncoder, eval_fraction: float, ledger: SourceLedger, report: Report
) -> Iterator[Piece]:
    """Documents -> what is encoded in one go: whole, or cut where the tokenizer is shown to allow it."""
    can_cut: bool | None = None
    num_sampled = dict.fromkeys(SPLITS, 0)
    for document in documents:
        split = split_of(document, eval_fraction)
        ledger.kept[split].add(document.num_bytes)
        texts = document.pieces()
        text = next(texts)
        if num_sampled[split] < SAMPLE_CHARS:
            num_sampled[split] += len(text)
            ledger.lost_characters[split] = dict(Counter(ledger.lost_characters[split]) + encoder.lost(text))
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
    """Enter the stored tokens into the ledger; raises AssertionError where they disagree with what was read."""
    for split in SPLITS:
        written, kept = writer.written(split), ledger.kept[split]
        assert (written.documents, written.bytes) == (kept.documents, kept.bytes), (split, written, kept)
        ledger.tokens[split] = TokenTally(
            tokens=written.tokens,
            text_tokens=written.text_tokens,
            unknown_tokens=written.unknown_tokens,
            added_tokens=written.documents * (len(encoder.prefix) + len(encoder.suffix)),
            unpredicted_tokens=written.documents,
        )


class _Clock:
    """Reports the progress of a long build, every REPORT_SECONDS."""

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
