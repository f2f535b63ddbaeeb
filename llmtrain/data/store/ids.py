"""Rows of ids -> token stores for pretraining: the ids as they are, once they are shown to be the tokenizer's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from llmtrain.config.data import CleanConfig, DataConfig, Source
from llmtrain.data.formats.faults import UnfitRow
from llmtrain.data.formats.read import FormatReader, read_examples
from llmtrain.data.formats.token_rows import IDS, TokenRow, has_ids, is_ids_alone, require_known, token_row
from llmtrain.data.ledger import TOKENIZED, SourceLedger, text_summary
from llmtrain.data.sources.files import Files, file_kind, resolve, resolve_rows
from llmtrain.data.sources.items import iter_items
from llmtrain.data.sources.readers import READERS
from llmtrain.data.sources.rows import Row, Wanted
from llmtrain.data.split import split_of
from llmtrain.data.store.binding import Binding
from llmtrain.data.store.documents import Documents
from llmtrain.data.store.spec import StoreKind
from llmtrain.data.tokenize import TextEncoder
from llmtrain.system.typing import Report


def holds_ids(source: Source) -> bool:
    """Whether the first good row of a source has ids and no text. Raises ValueError for one that is not there."""
    if source.text_field is not None:
        return False
    location = resolve(source)
    if isinstance(location, Files) and not all(file_kind(path, source) in READERS for path in location.paths):
        return False
    rows = (item for item in iter_items(source, location, Wanted(lambda row: has_ids(row.fields))))
    first = next((item for item in rows if isinstance(item, Row)), None)
    return first is not None and is_ids_alone(first.fields)


def ids_kind(data: DataConfig, binding: Binding, eval_fraction: float, report: Report) -> StoreKind[TokenRow]:
    """Rows of ids of a tokenizer, each a document. Raises ValueError for cleaning, which reads text."""
    if data.clean != CleanConfig():
        raise ValueError("data.clean reads text, and a source holds ids: clean the text before it is tokenized")

    def read(source: Source, ledger: SourceLedger) -> Iterator[TokenRow]:
        return iter_token_rows(data, binding, source, ledger, report)

    def try_first(source: Source) -> None:
        next(read_quietly(data, binding, source))

    return StoreKind(
        unit="row",
        content={
            "kind": "text",
            "rows": TOKENIZED,
            "tokenizer": binding.fingerprint,
            "eval_fraction": eval_fraction,
            "on_bad_row": data.on_bad_row,
        },
        about=binding.about,
        dtype=binding.encoder.dtype,
        resolve=resolve_rows,
        read=read,
        item_content=lambda row: repr(row.ids).encode(),
        item_bytes=lambda row: row.num_bytes,
        make=partial(_make, binding.encoder, eval_fraction),
        try_first=try_first,
        summary=text_summary,
        masked=False,
    )


def read_quietly(data: DataConfig, binding: Binding, source: Source) -> Iterator[TokenRow]:
    """The rows of a source, without an account."""
    return iter_token_rows(data, binding, source, SourceLedger(path=source.path), lambda line: None)


def iter_token_rows(
    data: DataConfig, binding: Binding, source: Source, ledger: SourceLedger, report: Report
) -> Iterator[TokenRow]:
    """The rows of a source, read as `read_examples` does."""

    def convert(row: Row) -> list[TokenRow]:
        found = token_row(row.fields, row.where)
        require_known(found, binding.encoder.vocab_size, binding.name)
        if found.weights is not None and set(found.weights) != {1.0}:
            raise UnfitRow(
                "tokens that are not trained",
                "its labels or mask leave tokens out, and pretraining trains every one: tune with llmtrain sft",
            )
        return [found]

    def described(first: TokenRow) -> str:
        return f"tokenized rows (field {IDS}), ids of {binding.name} as they are; the first has {len(first.ids)}"

    reader: FormatReader[TokenRow] = FormatReader(TOKENIZED, convert, described)
    return read_examples(source, lambda row: reader, data.on_bad_row, ledger, report, unit="row")


def _make(encoder: TextEncoder, eval_fraction: float, rows: Sequence[TokenRow], documents: Documents) -> None:
    texts = encoder.backend.decode_batch([list(row.ids) for row in rows], skip_special_tokens=True)
    for row, text in zip(rows, texts, strict=True):
        split = split_of(row, eval_fraction)
        documents.add_tokens(split, np.array(row.ids, dtype=encoder.dtype))
        documents.end_document(split, len(text.encode(errors="surrogatepass")))
        documents.ledger.kept[split].add(row.num_bytes)
        tally = documents.ledger.tokens[split]
        tally.tokens += len(row.ids)
        tally.text_tokens += len(row.ids)
        tally.unpredicted_tokens += 1
