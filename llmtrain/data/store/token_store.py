"""The token store: the tokens of one source in flat files, memory-mapped, opened in constant time.

A store is a folder. For each split it holds `tokens` (uint16 or uint32, documents end to end), `offsets`
(int64, where each document ends) and `bytes` (int64, UTF-8 length of each document); a store with a loss mask
also `trained` (uint8, 1 where a token is a target), and `weights` (float32) if some row weighs its targets; one whose
documents carry numbers a file of float32 for each. `store.json` marks it as finished, and names its tokenizer and
source. `documents` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.data.ledger import SPLITS, SourceLedger, Split
from llmtrain.system.paths import local_path
from llmtrain.system.typing import Array

FORMAT = 2  # 2: named by content
META = "store.json"


@dataclass(frozen=True)
class TokenStore:
    """One split of a finished store."""

    path: Path  # the store's folder
    split: Split
    tokens: Array  # (num_tokens,) unsigned, memory-mapped
    document_offsets: (
        Array  # (num_documents + 1,) int64, memory-mapped: document i is tokens[offsets[i]:offsets[i + 1]]
    )
    document_bytes: Array  # (num_documents,) int64, memory-mapped
    num_bytes: int  # UTF-8 bytes of all documents
    trained: Array | None = None  # (num_tokens,) uint8, memory-mapped: 1 where a token is a target; None: all are
    weights: Array | None = None  # (num_tokens,) float32, memory-mapped: of each target in the loss; None: 1
    values: Mapping[str, Array] = field(default_factory=dict)  # name -> (num_documents,) float32, memory-mapped
    name: str = ""  # what identifies its content, wherever it is

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.document_bytes)


def is_store(path: str | Path) -> bool:
    """Whether a folder is a finished store."""
    return (local_path(path) / META).is_file()


def read_meta(path: Path) -> dict[str, Any]:
    """What `store.json` holds. Raises ValueError if it is not that of a store, damaged, or of another format."""
    fault = f"{path / META}: not the description of a token store; delete the folder to rebuild"
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        found = meta["format"]
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(fault) from None
    if found != FORMAT:
        raise ValueError(f"{path}: a store of format {found}, this version reads format {FORMAT}; rebuild it")
    try:
        is_whole = isinstance(meta["name"], str) and isinstance(meta["kind"], str)
        SourceLedger.from_dict(meta["ledger"])
        np.dtype(meta["dtype"])
        for split in SPLITS:
            is_whole &= all(type(meta["splits"][split][unit]) is int for unit in ("tokens", "documents", "bytes"))
    except (TypeError, KeyError, AttributeError):
        is_whole = False
    if not is_whole:
        raise ValueError(fault)
    assert isinstance(meta, dict)
    return meta


def open_store(path: Path, split: Split) -> TokenStore:
    """One split of a finished store; no data is read, only the files' sizes are checked.

    Raises ValueError if a file is cut off.
    """
    meta = read_meta(path)
    sizes, dtype = meta["splits"][split], np.dtype(meta["dtype"])
    return TokenStore(
        path=path,
        split=split,
        tokens=_map(path / f"{split}.tokens", dtype, sizes["tokens"]),
        document_offsets=_map(path / f"{split}.offsets", np.dtype(np.int64), sizes["documents"] + 1),
        document_bytes=_map(path / f"{split}.bytes", np.dtype(np.int64), sizes["documents"]),
        num_bytes=sizes["bytes"],
        trained=_map(path / f"{split}.trained", np.dtype(np.uint8), sizes["tokens"]) if meta.get("masked") else None,
        weights=_map(path / f"{split}.weights", np.dtype(np.float32), sizes["tokens"])
        if meta.get("weighted")
        else None,
        values={
            name: _map(path / f"{split}.{name}", np.dtype(np.float32), sizes["documents"])
            for name in meta.get("values", ())
        },
        name=meta["name"],
    )


def _map(path: Path, dtype: np.dtype[Any], length: int) -> Array:
    size = path.stat().st_size if path.is_file() else 0
    if size != length * dtype.itemsize:
        raise ValueError(
            f"{path}: {size} bytes where {META} says {length * dtype.itemsize}; delete the folder to rebuild"
        )
    if not length:
        return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
