"""The token store: the tokens of one source in flat files, memory-mapped, opened in constant time.

A store is a folder. For each split it holds `tokens` (uint16 or uint32, documents end to end), `offsets`
(int64, where each document ends) and `bytes` (int64, UTF-8 length of each document); a store with a loss mask
also `trained` (uint8, 1 where a token is a target), and one whose documents carry numbers a file of float32 for
each. `store.json` marks it as finished, and names its tokenizer and source. While it is built,
the files only grow, and `journal` says how far they can be trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmtrain.data.ledger import SPLITS, SourceLedger, Split
from llmtrain.protocols import Array
from llmtrain.system.files import sync_folder

FORMAT = 2  # 2: named by content
META = "store.json"
JOURNAL = "journal"


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
    return (Path(path).expanduser() / META).is_file()


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
        values={
            name: _map(path / f"{split}.{name}", np.dtype(np.float32), sizes["documents"])
            for name in meta.get("values", ())
        },
        name=meta["name"],
    )


def _map(path: Path, dtype: np.dtype[Any], length: int) -> Array:
    size = _size(path)
    if size != length * dtype.itemsize:
        raise ValueError(
            f"{path}: {size} bytes where {META} says {length * dtype.itemsize}; delete the folder to rebuild"
        )
    if not length:
        return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,))


@dataclass
class Written:
    """How much of one split is in its files."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    text_tokens: int = 0  # tokens without those put around documents
    unknown_tokens: int = 0


@dataclass
class Progress:
    """How far a build has come: its journal's last line."""

    pieces: int = 0  # of the source's documents, in order, both splits together
    splits: dict[Split, Written] = field(default_factory=lambda: {split: Written() for split in SPLITS})


class StoreWriter:
    """Appends to the files of an unfinished store, from where its journal says that they are whole.

    Used as a context manager, under `exclusive`.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], masked: bool = False, values: Sequence[str] = ()) -> None:
        """`masked`: each token comes with whether it is a target of the loss; `values`: numbers of each document."""
        self._folder, self._dtype, self._masked, self._values = folder, dtype, masked, tuple(values)
        self.progress = _recover(folder, dtype, masked, values)
        self._files: dict[str, BinaryIO] = {}
        for name, size in _file_sizes(self.progress, dtype, masked, values).items():
            (folder / name).touch()
            os.truncate(folder / name, size)  # lengthens a new `offsets` file by its leading zero
            self._files[name] = (folder / name).open("ab")
        self._journal = (folder / JOURNAL).open("ab")
        self._write_journal()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in (*self._files.values(), self._journal):
            with contextlib.suppress(OSError):  # a full disk was raised by the write or flush that met it
                file.close()

    def write_tokens(
        self, split: Split, ids: Array, num_text_tokens: int, num_unknown_tokens: int, trained: Array | None = None
    ) -> None:
        """Append tokens to the split's open document; `trained` (tokens,) bool where the store is masked."""
        assert (trained is not None) == self._masked
        if trained is not None:
            self._files[f"{split}.trained"].write(trained.astype(np.uint8).data)
        self._files[f"{split}.tokens"].write(ids.astype(self._dtype, copy=False).data)
        written = self.progress.splits[split]
        written.tokens += len(ids)
        written.text_tokens += num_text_tokens
        written.unknown_tokens += num_unknown_tokens

    def end_document(self, split: Split, num_bytes: int, values: Sequence[float] = ()) -> None:
        """Close the split's open document; `num_bytes` is its length as UTF-8, `values` its numbers in order."""
        written = self.progress.splits[split]
        written.documents += 1
        written.bytes += num_bytes
        self._files[f"{split}.offsets"].write(np.int64(written.tokens).tobytes())
        self._files[f"{split}.bytes"].write(np.int64(num_bytes).tobytes())
        for name, value in zip(self._values, values, strict=True):
            self._files[f"{split}.{name}"].write(np.float32(value).tobytes())

    def flush(self, num_pieces: int) -> None:
        """Make all that was written durable, and note that it holds the first `num_pieces` pieces of the source."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.progress.pieces = num_pieces
        self._write_journal()

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Turn what was flushed into a finished store, described by `meta`."""
        splits = {
            split: {"tokens": written.tokens, "documents": written.documents, "bytes": written.bytes}
            for split, written in self.progress.splits.items()
        }
        layout = {"dtype": self._dtype.name, "masked": self._masked, "values": self._values}
        text = json.dumps({"format": FORMAT, **layout, "splits": splits, **meta}, indent=1)
        unfinished = self._folder / f"{META}.unfinished"
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(self._folder / META)
        sync_folder(self._folder)
        (self._folder / JOURNAL).unlink()

    def _write_journal(self) -> None:
        self._journal.write(
            b"\n" + json.dumps(asdict(self.progress)).encode()
        )  # so that it does not join a torn line before it
        self._journal.flush()
        os.fsync(self._journal.fileno())


def discard_unfinished(folder: Path, values: Sequence[str] = ()) -> None:
    """Delete what a build has left, but the lock, on which others may wait."""
    files = _file_sizes(Progress(), np.dtype(np.uint16), masked=True, values=values)
    for name in (*files, JOURNAL, f"{META}.unfinished"):
        (folder / name).unlink(missing_ok=True)


def _file_sizes(progress: Progress, dtype: np.dtype[Any], masked: bool, values: Sequence[str]) -> dict[str, int]:
    """Name -> bytes of every data file at a point of the build."""
    sizes = {}
    for split, written in progress.splits.items():
        sizes[f"{split}.tokens"] = written.tokens * dtype.itemsize
        sizes[f"{split}.offsets"] = (written.documents + 1) * 8
        sizes[f"{split}.bytes"] = written.documents * 8
        if masked:
            sizes[f"{split}.trained"] = written.tokens
        sizes |= {f"{split}.{name}": written.documents * 4 for name in values}
    return sizes


def _recover(folder: Path, dtype: np.dtype[Any], masked: bool, values: Sequence[str]) -> Progress:
    """The last point in the journal up to which every file is whole."""
    path = folder / JOURNAL
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for line in reversed(lines):
        try:
            tree = json.loads(line)
        except ValueError:
            continue  # a kill tore this line; the one before it counts
        progress = Progress(tree["pieces"], {split: Written(**tree["splits"][split]) for split in SPLITS})
        sizes = _file_sizes(progress, dtype, masked, values)
        if all(_size(folder / name) >= size for name, size in sizes.items()):
            return progress
    return Progress()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
