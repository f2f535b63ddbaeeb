"""Sources -> a tokenizer's folder, with a report of the bytes per token in text it has not seen.

Training text is read once, in a stream. The documents held out are those that a run with the same
`eval_fraction` holds out.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer

from llmtrain.config.data import OnBadRow, Source
from llmtrain.config.tokenizer import TokenizerTrainConfig
from llmtrain.data.ledger import SourceLedger, end_markers
from llmtrain.data.sources.documents import iter_documents
from llmtrain.data.split import eval_share
from llmtrain.models.folders.compatible import save_tokenizer_files
from llmtrain.protocols import Report
from llmtrain.system.counted import counted
from llmtrain.tokenizers.bpe import as_transformers, special_token_list, train_bpe

REPORT_FILE = "training.json"

MAX_HELD_OUT_BYTES = 16 << 20
"""Of each source, held in memory until the tokenizer is there to measure it; later documents are trained on."""

PROGRESS_BYTES = 256 << 20


@dataclass
class SourceText:
    """One source, read piece by piece, and what has been read of it."""

    source: Source
    eval_fraction: float
    on_bad_row: OnBadRow = "error"
    num_bytes: int = 0
    num_documents: int = 0
    num_held_out_documents: int = 0
    held_out: list[str] = field(default_factory=list)
    held_out_bytes: int = 0

    def __post_init__(self) -> None:
        self.ledger = SourceLedger(self.source.path)

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Each piece of text, counted, and whether its document is held out."""
        for document in iter_documents(self.source, self.on_bad_row, self.ledger):
            held_out = self.held_out_bytes < MAX_HELD_OUT_BYTES and eval_share(document) < self.eval_fraction
            self.num_documents += 1
            self.num_held_out_documents += held_out
            for text in document.pieces():
                size = len(text.encode())
                self.num_bytes += size
                if held_out:
                    self.held_out.append(text)
                    self.held_out_bytes += size
                yield text, held_out


def train_tokenizer(config: TokenizerTrainConfig, report: Report) -> None:
    """Train a tokenizer, measure it, and write its folder, or report that the folder holds it already.

    Raises ValueError for a folder that holds something else, for special tokens that cannot be kept separate,
    and for sources that cannot be read or hold no text.
    """
    folder = Path(config.output)
    if _holds_this(folder, config):
        report(f"{folder} holds the tokenizer of this configuration already; remove the folder to train it again")
        return
    _check(config)
    started = time.perf_counter()
    sources = [SourceText(source, config.eval_fraction, config.on_bad_row) for source in config.sources]
    tokenizer = train_bpe(_training_text(sources, config.max_bytes, report), config)
    trained_seconds = time.perf_counter() - started
    num_bytes = sum(source.num_bytes for source in sources)
    if num_bytes == sum(source.held_out_bytes for source in sources):
        raise ValueError(f"every document is held out (eval_fraction={config.eval_fraction}): none is left to train on")
    measured = [_measure(source, tokenizer) for source in sources]
    vocab_size = tokenizer.get_vocab_size()
    training = {
        "config": config.model_dump(exclude={"output"}),
        "vocab_size": vocab_size,
        "sources": measured,
        "tokenizers": tokenizers.__version__,
    }
    _write(folder, tokenizer, config, training)
    for text, source in zip(sources, measured, strict=True):
        report(_summary(source))
        for reason, tally in text.ledger.bad_rows.items():
            report(f"{text.source.path}: skipped {counted(tally.documents, 'row')}: {reason}")
        for warning in end_markers(text.ledger):
            report(f"{text.source.path}: {warning}")
    if vocab_size < config.vocab_size:
        report(
            f"the text has too few pairs seen {config.min_frequency} times to fill vocab_size={config.vocab_size}: "
            f"the vocabulary is {vocab_size}"
        )
    report(
        f"{folder}: {vocab_size} tokens, learnt from {_megabytes(num_bytes)} in {trained_seconds:.1f} s, "
        f"{time.perf_counter() - started:.1f} s in all"
    )


def interleave(sources: Sequence[SourceText], max_bytes: int | None) -> Iterator[tuple[str, bool]]:
    """Pieces of all sources until `max_bytes` are read: the source with the least read for its weight comes next.

    A source that ends leaves its share to the others. Without weights the shares are equal.
    """
    left = [(source, source.pieces()) for source in sources]
    while left and (max_bytes is None or sum(source.num_bytes for source in sources) < max_bytes):
        source, pieces = min(left, key=lambda item: item[0].num_bytes / (item[0].source.weight or 1.0))
        piece = next(pieces, None)
        if piece is None:
            left.remove((source, pieces))
        else:
            yield piece


def _training_text(sources: Sequence[SourceText], max_bytes: int | None, report: Report) -> Iterator[str]:
    reported = 0
    for text, held_out in interleave(sources, max_bytes):
        num_bytes = sum(source.num_bytes for source in sources)
        if num_bytes >= reported + PROGRESS_BYTES:
            reported = num_bytes
            report(f"read {_megabytes(num_bytes)}")
        if not held_out:
            yield text


def _check(config: TokenizerTrainConfig) -> None:
    special_token_list(config)
    if not config.sources:
        raise ValueError("sources names no source")
    weighted = [source.weight is not None for source in config.sources]
    if any(weighted) and not all(weighted):
        raise ValueError("sources: give every source a weight, or none")
    if any(weighted) and config.max_bytes is None:
        raise ValueError("sources: weights share out max_bytes, which is not given: give it, or no weights")


def _holds_this(folder: Path, config: TokenizerTrainConfig) -> bool:
    """Whether the folder is there and was trained from the same configuration.

    Raises ValueError if it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        there = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"output={folder} is not empty and holds no tokenizer of ours: choose another folder"
        ) from None
    here = config.model_dump(exclude={"output"})
    different = [key for key in here if here[key] != there.get(key)]
    if different:
        key = different[0]
        raise ValueError(
            f"output={folder} holds a tokenizer of another configuration ({key} is {there.get(key)!r} there and "
            f"{here[key]!r} here): choose another folder, or remove that one"
        )
    return True


def _measure(source: SourceText, tokenizer: Tokenizer) -> dict[str, Any]:
    encodings = tokenizer.encode_batch_fast(source.held_out, add_special_tokens=False)
    num_tokens = sum(len(encoding.ids) for encoding in encodings)
    return {
        "path": source.source.path,
        "documents": source.num_documents,
        "bytes": source.num_bytes,
        "held_out_documents": source.num_held_out_documents,
        "held_out_bytes": source.held_out_bytes,
        "held_out_tokens": num_tokens,
        "bytes_per_token": source.held_out_bytes / num_tokens if num_tokens else None,
    }


def _summary(source: dict[str, Any]) -> str:
    read = f"{source['path']}: {counted(source['documents'], 'document')}, {_megabytes(source['bytes'])}"
    if source["bytes_per_token"] is None:
        return f"{read}; no document held out, so its bytes per token are not known"
    return (
        f"{read}; {source['bytes_per_token']:.2f} bytes per token on "
        f"{counted(source['held_out_documents'], 'held-out document')}, {_megabytes(source['held_out_bytes'])}"
    )


def _write(folder: Path, tokenizer: Tokenizer, config: TokenizerTrainConfig, report: dict[str, Any]) -> None:
    """The whole folder under its name at once, so that a killed run leaves none that looks finished."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_tokenizer_files(as_transformers(tokenizer, config.special_tokens), partial)
    (partial / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, folder)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
