"""A store while it is built: files that only grow, and a journal that says how far they can be trusted.

A line of the journal is a point of the build: how many items of the source are in the files, a digest of those items,
the files' lengths, and the account of them. A later build whose source begins with the same items goes on from there
(`units`), also that of a source that was corrected after a bad row, whose store has another name.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmtrain.data.ledger import SPLITS, Split
from llmtrain.data.store.token_store import FORMAT, META, is_store
from llmtrain.protocols import Array
from llmtrain.system.files import exclusive_if_free, sync_folder, write_bytes

JOURNAL = "journal"


@dataclass(frozen=True)
class Layout:
    """What the files of a store hold."""

    dtype: np.dtype[Any]  # of token ids
    masked: bool = False  # each token comes with whether it is a target of the loss
    values: tuple[str, ...] = ()  # numbers of each document
    tokens_of: str = ""  # names all that makes tokens of an item
    goes_on_from: tuple[str, ...] = ("",)  # the `tokens_of` that make the same


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
    """A point of a build: what its files hold."""

    items: int = 0  # of the source, in order, both splits together
    digest: str = ""  # of these items
    ledger: Mapping[str, Any] = field(default_factory=dict)  # the account of what became of them
    splits: dict[Split, Written] = field(default_factory=lambda: {split: Written() for split in SPLITS})


@dataclass(frozen=True)
class Earlier:
    """An unfinished build, whose lock is held, and the points that its files reach."""

    folder: Path
    points: Sequence[Progress]


class StoreWriter:
    """Appends to the files of an unfinished store; a context manager, used under `exclusive`.

    `begin` says from which point of which earlier build; nothing of them changes before.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._layout = folder, layout
        self._locks = contextlib.ExitStack()
        self.earlier = [Earlier(each, _points(each, layout)) for each in self._abandoned()]
        self.progress: Progress | None = None  # None: not begun
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._locks.close()
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk was raised by the write or flush that met it
                file.close()

    def begin(self, build: Earlier | None, point: int) -> None:
        """Take the files of an earlier build up to its points[:point], or start with none."""
        points = [] if build is None else build.points[:point]
        if build is not None and build.folder != self._folder:
            _move(build.folder, self._folder, self._layout)
        self._locks.close()
        self.progress = points[-1] if points else Progress()
        lines = [{"tokens_of": self._layout.tokens_of}, *map(asdict, points)]
        # Before any file grows past a point that no longer counts.
        write_bytes(self._folder / JOURNAL, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        for name, size in _file_sizes(self.progress, self._layout).items():
            (self._folder / name).touch()
            os.truncate(self._folder / name, size)  # lengthens a new `offsets` file by its leading zero
            self._files[name] = (self._folder / name).open("ab")
        self._files[JOURNAL] = (self._folder / JOURNAL).open("ab")

    def write_tokens(
        self, split: Split, ids: Array, num_text_tokens: int, num_unknown_tokens: int, trained: Array | None = None
    ) -> None:
        """Append tokens to the split's open document; `trained` (tokens,) bool where the store is masked."""
        assert (trained is not None) == self._layout.masked
        if trained is not None:
            self._files[f"{split}.trained"].write(trained.astype(np.uint8).data)
        self._files[f"{split}.tokens"].write(ids.astype(self._layout.dtype, copy=False).data)
        written = self.written(split)
        written.tokens += len(ids)
        written.text_tokens += num_text_tokens
        written.unknown_tokens += num_unknown_tokens

    def end_document(self, split: Split, num_bytes: int, values: Sequence[float] = ()) -> None:
        """Close the split's open document; `num_bytes` is its length as UTF-8, `values` its numbers in order."""
        written = self.written(split)
        written.documents += 1
        written.bytes += num_bytes
        self._files[f"{split}.offsets"].write(np.int64(written.tokens).tobytes())
        self._files[f"{split}.bytes"].write(np.int64(num_bytes).tobytes())
        for name, value in zip(self._layout.values, values, strict=True):
            self._files[f"{split}.{name}"].write(np.float32(value).tobytes())

    def flush(self, num_items: int, digest: str, ledger: Mapping[str, Any]) -> None:
        """Make all that was written durable, and note that it holds the first `num_items` items of the source."""
        assert self.progress is not None
        for name, file in self._files.items():
            if name != JOURNAL:
                file.flush()
                os.fsync(file.fileno())
        self.progress.items, self.progress.digest, self.progress.ledger = num_items, digest, ledger
        journal = self._files[JOURNAL]
        journal.write(json.dumps(asdict(self.progress)).encode() + b"\n")
        journal.flush()
        os.fsync(journal.fileno())

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Turn what was flushed into a finished store, described by `meta`."""
        assert self.progress is not None
        splits = {
            split: {"tokens": written.tokens, "documents": written.documents, "bytes": written.bytes}
            for split, written in self.progress.splits.items()
        }
        layout = {"dtype": self._layout.dtype.name, "masked": self._layout.masked, "values": self._layout.values}
        description = json.dumps({"format": FORMAT, **layout, "splits": splits, **meta}, indent=1)
        write_bytes(self._folder / META, description.encode())
        (self._folder / JOURNAL).unlink()
        sync_folder(self._folder)

    def written(self, split: Split) -> Written:
        """How much of a split is in its files."""
        assert self.progress is not None
        return self.progress.splits[split]

    def _abandoned(self) -> Iterator[Path]:
        """This folder and those of unfinished builds beside it that no process has; their locks are held."""
        yield self._folder
        for folder in sorted(self._folder.parent.iterdir()):
            is_other = folder != self._folder and (folder / JOURNAL).is_file() and not is_store(folder)
            if is_other and self._locks.enter_context(exclusive_if_free(folder)):
                yield folder


def _file_sizes(progress: Progress, layout: Layout) -> dict[str, int]:
    """Name -> bytes of every data file at a point of the build."""
    sizes = {}
    for split, written in progress.splits.items():
        sizes[f"{split}.tokens"] = written.tokens * layout.dtype.itemsize
        sizes[f"{split}.offsets"] = (written.documents + 1) * 8
        sizes[f"{split}.bytes"] = written.documents * 8
        if layout.masked:
            sizes[f"{split}.trained"] = written.tokens
        sizes |= {f"{split}.{name}": written.documents * 4 for name in layout.values}
    return sizes


def _points(folder: Path, layout: Layout) -> list[Progress]:
    """The points of a build of the same layout that its files reach, in order."""
    path = folder / JOURNAL
    lines = path.read_bytes().splitlines() if path.is_file() else []
    points = []
    for number, line in enumerate(lines):
        try:
            tree = json.loads(line)
        except ValueError:
            break  # a kill tore this line
        if number == 0:
            if tree.get("tokens_of") not in layout.goes_on_from:
                break
            continue
        splits = {split: Written(**tree["splits"][split]) for split in SPLITS}
        point = Progress(tree["items"], tree["digest"], tree["ledger"], splits)
        if any(_size(folder / name) < size for name, size in _file_sizes(point, layout).items()):
            break
        points.append(point)
    return points


def _move(source: Path, target: Path, layout: Layout) -> None:
    """Move the files of an unfinished build, its journal first, so that nothing is trusted that is not whole."""
    (source / JOURNAL).unlink()
    for name in _file_sizes(Progress(), layout):
        os.replace(source / name, target / name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
