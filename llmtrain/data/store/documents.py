"""Documents on their way into a store: collected in memory, kept as a file, put together with others.

A file of documents (`.npz`) holds an array for each file of a store, and the account of them. The files of a store are
these arrays end to end, so they are the same whoever made which part.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.data.ledger import SPLITS, SourceLedger, Split
from llmtrain.data.store.token_store import FORMAT, META
from llmtrain.system.files import sync_folder, write_bytes, write_whole
from llmtrain.system.typing import Array

ABOUT = "about"
WEIGHTS = "weights"


@dataclass(frozen=True)
class Layout:
    """What the files of a store hold."""

    dtype: np.dtype[Any]  # of token ids
    masked: bool = False  # each token comes with whether it is a target of the loss
    values: tuple[str, ...] = ()  # numbers of each document

    @property
    def files(self) -> dict[str, np.dtype[Any]]:
        """Name -> type of every file that is always there."""
        dtypes = {"tokens": self.dtype, "offsets": np.dtype(np.int64), "bytes": np.dtype(np.int64)}
        dtypes |= {"trained": np.dtype(np.uint8)} if self.masked else {}
        dtypes |= dict.fromkeys(self.values, np.dtype(np.float32))
        return {f"{split}.{name}": dtype for split in SPLITS for name, dtype in dtypes.items()}

    @property
    def weight_files(self) -> dict[str, str]:
        """Name of each file of weights, which is there if any token has another weight than 1 -> that of its tokens."""
        return {f"{split}.{WEIGHTS}": f"{split}.tokens" for split in SPLITS} if self.masked else {}


class Damaged(Exception):
    """A file of documents that is not there, or cannot be read."""


class Documents:
    """Documents in order, of both splits; the first and the last may be parts, whose rest is in other files."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tokens: dict[str, list[Array]] = defaultdict(list)
        self._numbers: dict[str, list[float]] = defaultdict(list)
        self._num_tokens = dict.fromkeys(SPLITS, 0)
        self._weights: dict[Split, list[tuple[int, Array | None]]] = {split: [] for split in SPLITS}
        self.ledger = SourceLedger(path="")  # the account of what became of the items

    def add_tokens(self, split: Split, ids: Array, trained: Array | None = None, weights: Array | None = None) -> None:
        """Add to the split's open document; `trained` (tokens,) bool where the store is masked.

        `weights` (tokens,) float32 of targets in the loss; None: each has 1.
        """
        assert (trained is not None) == self._layout.masked
        self._weights[split].append((len(ids), weights))
        self._tokens[f"{split}.tokens"].append(ids)
        if trained is not None:
            self._tokens[f"{split}.trained"].append(trained)
        self._num_tokens[split] += len(ids)

    def end_document(self, split: Split, num_bytes: int, values: Sequence[float] = ()) -> None:
        """Close the split's open document; `num_bytes` is its length as UTF-8, `values` its numbers in order."""
        self._numbers[f"{split}.offsets"].append(self._num_tokens[split])
        self._numbers[f"{split}.bytes"].append(num_bytes)
        for name, value in zip(self._layout.values, values, strict=True):
            self._numbers[f"{split}.{name}"].append(value)

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write them as a file, whole or not at all, with their account and `about`."""
        arrays: dict[str, Array] = {}
        for name, dtype in self._layout.files.items():
            parts = self._tokens.get(name)
            arrays[name] = np.concatenate(parts, dtype=dtype) if parts else np.array(self._numbers[name], dtype)
        if any(weights is not None for given in self._weights.values() for _, weights in given):
            for split, given in self._weights.items():
                filled = [np.ones(length, np.float32) if weights is None else weights for length, weights in given]
                arrays[f"{split}.{WEIGHTS}"] = np.concatenate([np.zeros(0, np.float32), *filled])
        text = json.dumps({"ledger": self.ledger.to_dict(), **about}).encode()
        arrays[ABOUT] = np.frombuffer(text, np.uint8)
        write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Joined:
    """What the files of a store hold."""

    splits: Mapping[Split, Mapping[str, int]]
    ledger: SourceLedger
    about: Sequence[Mapping[str, Any]]  # of each file of documents
    weighted: bool  # some token has another weight than 1


def join(folder: Path, layout: Layout, paths: Sequence[Path]) -> Joined:
    """Write the data files of a store from files of documents, in order. Raises Damaged, naming the file."""
    splits: dict[Split, dict[str, int]] = {split: {"tokens": 0, "documents": 0, "bytes": 0} for split in SPLITS}
    ledger, about = SourceLedger(path=""), []
    weighted = any(_is_weighted(path, layout) for path in paths) if layout.masked else False
    names = [*layout.files, *(layout.weight_files if weighted else ())]
    with ExitStack() as opened:
        files = {name: opened.enter_context((folder / name).open("wb")) for name in names}
        for split in SPLITS:
            files[f"{split}.offsets"].write(np.int64(0).tobytes())
        for path in paths:
            arrays, account = _read(path, layout, weighted=weighted)
            for split, sizes in splits.items():
                arrays[f"{split}.offsets"] += sizes["tokens"]
                sizes["tokens"] += len(arrays[f"{split}.tokens"])
                sizes["documents"] += len(arrays[f"{split}.bytes"])
                sizes["bytes"] += int(arrays[f"{split}.bytes"].sum())
            for name, array in arrays.items():
                files[name].write(array.tobytes())
            ledger.add(SourceLedger.from_dict(account["ledger"]))
            about.append(account)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    return Joined(splits, ledger, about, weighted)


def finish(folder: Path, layout: Layout, joined: Joined, meta: Mapping[str, Any]) -> None:
    """Make the joined files of a folder a finished store, described by `meta`."""
    described: dict[str, Any] = {"dtype": layout.dtype.name, "masked": layout.masked, "values": layout.values}
    described |= {"weighted": True} if joined.weighted else {}
    description = json.dumps({"format": FORMAT, **described, "splits": joined.splits, **meta}, indent=1)
    write_bytes(folder / META, description.encode())
    sync_folder(folder)


def _read(path: Path, layout: Layout, *, weighted: bool) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of a file of documents, with weights if they are asked for, and its account. Raises Damaged."""
    with _opened(path) as saved:
        arrays = {name: saved[name].astype(dtype, copy=False) for name, dtype in layout.files.items()}
        for name, tokens in layout.weight_files.items() if weighted else ():
            arrays[name] = saved[name] if name in saved else np.ones(len(arrays[tokens]), np.float32)
        return arrays, json.loads(saved[ABOUT].tobytes())


def _is_weighted(path: Path, layout: Layout) -> bool:
    """Whether a file of documents has weights. Raises Damaged."""
    with _opened(path) as saved:
        return any(name in saved for name in layout.weight_files)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The arrays of a file of documents by name, of which each is read where it is taken. Raises Damaged."""
    try:
        with path.open("rb") as file, np.load(file) as saved:
            yield saved
    except (FileNotFoundError, zipfile.BadZipFile, EOFError, ValueError, KeyError):
        raise Damaged(path) from None
