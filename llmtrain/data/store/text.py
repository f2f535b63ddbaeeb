"""Plain text -> token stores: read, clean, split into train and held out, tokenize, store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmtrain.config.data import CleanConfig, DataConfig, Source
from llmtrain.data.formats.token_rows import TokenRow
from llmtrain.data.ledger import SPLITS, SourceLedger, text_summary
from llmtrain.data.sources.clean import Cleaner
from llmtrain.data.sources.documents import iter_documents
from llmtrain.data.sources.files import content_of, resolve
from llmtrain.data.sources.ngrams import WORD
from llmtrain.data.sources.text import Document
from llmtrain.data.split import eval_share, split_of
from llmtrain.data.store.binding import Binding
from llmtrain.data.store.build import Stores, find_or_build
from llmtrain.data.store.documents import Documents
from llmtrain.data.store.ids import holds_ids, ids_kind, read_quietly
from llmtrain.data.store.spec import StoreKind, StoreSpec, StoreSpecs, store_spec
from llmtrain.data.store.token_store import is_store, read_meta
from llmtrain.data.tokenize import Ids, Piece, TextEncoder, batch_chars
from llmtrain.system.paths import local_path
from llmtrain.system.typing import Report

SAMPLE_CHARS = 1 << 18
"""Text of each split that is decoded again, to see what the tokenizer loses."""

Read = Callable[[Source, SourceLedger], Iterator[Document]]
"""The documents of a source that are kept; everything else is entered in the ledger."""


def build_text_stores(data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, report: Report) -> Stores:
    """The token stores of a run's sources: found, or built by this process while others wait for it.

    Raises ValueError, one line, for bad input, a store of another tokenizer, an empty split or a full disk.
    """
    return find_or_build(text_specs(data, tokenizer, report=report), report)


def text_specs(data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, report: Report) -> StoreSpecs:
    """What the token stores of a run's sources are made of.

    Raises ValueError, one line, for a source that is not there, a store of another tokenizer, and if nothing would be
    held out.
    """
    binding = Binding.of(tokenizer)
    eval_fraction = data.eval_fraction if data.eval is None else 0.0
    train = _train_specs(data, eval_fraction, binding, report)
    held_out = _eval_specs(data, binding, report)
    if eval_fraction and not all(is_store(spec.folder) for spec in train):
        _require_some_to_hold_out(data, binding)
    return StoreSpecs(data, train, held_out)


def _train_specs(data: DataConfig, eval_fraction: float, binding: Binding, report: Report) -> list[StoreSpec]:
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
        kind = _text_kind(data, content, partial(_read_cleaned, cleaner, index, data), binding, report)
        specs.append(_spec(f"data.train[{index}]", source, kind, data, binding, report))
    return specs


def _eval_specs(data: DataConfig, binding: Binding, report: Report) -> list[StoreSpec]:
    """The stores of held-out sources, which are read as they are, without cleaning."""
    content = {
        "earlier": [],
        "clean": CleanConfig().model_dump(exclude={"decontaminate"}),
        "decontaminate": [],
        "eval_fraction": 0.0,
        "on_bad_row": data.on_bad_row,
    }
    kind = _text_kind(data, content, partial(_read, data), binding, report)
    return [
        _spec(f"data.eval[{index}]", source, kind, data, binding, report)
        for index, source in enumerate(data.eval or ())
    ]


def _read(data: DataConfig, source: Source, ledger: SourceLedger) -> Iterator[Document]:
    return iter_documents(source, data.on_bad_row, ledger)


def _try_first(data: DataConfig, source: Source) -> None:
    """Read the first document, uncleaned; raises ValueError, one line, for bad input."""
    next(_read(data, source, SourceLedger(path=source.path)))


def _read_cleaned(
    cleaner: Cleaner, index: int, data: DataConfig, source: Source, ledger: SourceLedger
) -> Iterator[Document]:
    return cleaner.clean(index, _read(data, source, ledger), ledger)


def _text_kind(
    data: DataConfig, content: Mapping[str, Any], read: Read, binding: Binding, report: Report
) -> StoreKind[Piece]:
    """Documents of plain text; `content` is what decides a store besides source and tokenizer."""
    return StoreKind(
        unit="document",
        content={"kind": "text", "tokenizer": binding.fingerprint, **content},
        about=binding.about,
        dtype=binding.encoder.dtype,
        read=partial(_read_pieces, read, binding.encoder, content["eval_fraction"], report),
        item_content=_piece_content,
        item_bytes=lambda piece: len(piece.text),
        make=partial(_make, binding.encoder),
        try_first=partial(_try_first, data),
        summary=text_summary,
        masked=False,
    )


def _spec(
    key: str, source: Source, kind: StoreKind[Piece], data: DataConfig, binding: Binding, report: Report
) -> StoreSpec:
    """The store of a source in the cache, of text or of ids, or the finished one that the configuration itself names.

    A source whose store of text is finished is not read to see what it holds: a slice counts all rows, a dataset of the
    hub is asked for.
    """
    if not is_store(source.path):
        of_text = store_spec(key, source, kind, data.cache_dir, report)
        if is_store(of_text.folder) or not holds_ids(source):
            return of_text
        of_ids = ids_kind(data, binding, kind.content["eval_fraction"], report)
        return store_spec(key, source, of_ids, data.cache_dir, report)
    folder = local_path(source.path)
    _require_usable(key, source, read_meta(folder), data, binding)
    return StoreSpec(key, source, kind, folder, read=None, meta={})


def _require_usable(key: str, source: Source, meta: Mapping[str, Any], data: DataConfig, binding: Binding) -> None:
    """Raises ValueError for a store of another kind or tokenizer, and options that only a build can follow."""
    path = local_path(source.path)
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


def _require_some_to_hold_out(data: DataConfig, binding: Binding) -> None:
    """Raises ValueError, before anything is tokenized, if no document's hash falls into the held-out share.

    Reads no further than the first document that does: some 1 / eval_fraction documents.
    """
    smallest = 1.0
    num_documents = 0
    for source in data.train:
        if is_store(source.path):
            return
        documents: Iterator[Document | TokenRow] = (
            read_quietly(data, binding, source)
            if holds_ids(source)
            else iter_documents(source, data.on_bad_row, SourceLedger(path=source.path))
        )
        for document in documents:
            num_documents += 1
            smallest = min(smallest, eval_share(document))
            if smallest < data.eval_fraction:
                return
    raise ValueError(
        f"data.eval_fraction={data.eval_fraction} holds out none of {num_documents} documents; set it above "
        f"{smallest:.3g}, or to 0, or give data.eval (of a single text file, `slice: 90%:100%` for instance)"
    )


def _read_pieces(
    read: Read, encoder: TextEncoder, eval_fraction: float, report: Report, source: Source, ledger: SourceLedger
) -> Iterator[Piece]:
    """A source -> what is encoded in one go: documents, cut if they are long and the tokenizer is shown to allow it."""
    can_cut: bool | None = None
    num_sampled = dict.fromkeys(SPLITS, 0)
    for document in read(source, ledger):
        split = split_of(document, eval_fraction)
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


def _piece_content(piece: Piece) -> bytes:
    """All of a piece that decides what is stored of it."""
    return (
        b"%d %d %d %d " % (piece.split == "eval", piece.first, piece.last, piece.document_bytes) + piece.text.encode()
    )


def _make(encoder: TextEncoder, pieces: Sequence[Piece], documents: Documents) -> None:
    """Tokenize pieces of text, and account for every token."""
    for batch, ids_of_batch in encoder.encode_ahead(_batches(pieces)):
        for piece, ids in zip(batch, ids_of_batch, strict=True):
            _add_piece(documents, encoder, piece, ids)


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


def _add_piece(documents: Documents, encoder: TextEncoder, piece: Piece, ids: Ids) -> None:
    before = encoder.prefix if piece.first else ()
    after = encoder.suffix if piece.last else ()
    whole = np.concatenate([np.array(before, ids.dtype), ids, np.array(after, ids.dtype)]) if before or after else ids
    documents.add_tokens(piece.split, whole)
    tally = documents.ledger.tokens[piece.split]
    tally.tokens += len(whole)
    tally.text_tokens += len(ids)
    tally.added_tokens += len(before) + len(after)
    if encoder.unknown_id is not None:
        tally.unknown_tokens += int(np.count_nonzero(ids == encoder.unknown_id))
    if piece.last:
        documents.end_document(piece.split, piece.document_bytes)
        documents.ledger.kept[piece.split].add(piece.document_bytes)
        tally.unpredicted_tokens += 1
