"""Where a source's text lies: the files of a path, glob or folder, or a dataset of the hub."""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from llmtrain.config.sections import Source

TEXT_SUFFIXES = (".txt", ".md", ".rst")
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".zst")
READABLE = f"{' '.join(TEXT_SUFFIXES + ROW_SUFFIXES)}, each also with {' or '.join(COMPRESSIONS)}"

# What `Dataset.save_to_disk` writes beside its .arrow files.
DATASET_METADATA = frozenset({"dataset_info.json", "dataset_dict.json", "state.json"})
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Files:
    """Files to read, in order; `names` are relative to the source's folder."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    not_read: Mapping[str, int]  # suffix -> number of files passed over


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the hub at one commit."""

    name: str
    commit: str


def resolve(source: Source) -> Files | HubDataset:
    """The files or the hub dataset that a source names.

    Raises ValueError where there is none, or none that can be read.
    """
    path = Path(source.path).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        return _readable(source.path, found, path)
    if path.is_file():
        if file_kind(path) is None:
            raise ValueError(f"{path}: files of this suffix are not read, only {READABLE}")
        return Files((path,), (path.name,), {})
    if glob.has_magic(source.path):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not found:
            raise ValueError(f"{source.path}: no file matches")
        return _readable(source.path, found, Path(os.path.commonpath([p.parent for p in found])))
    if file_kind(path) is not None or not HUB_ID.fullmatch(source.path) or source.path.startswith("."):
        raise ValueError(f"{source.path}: no such file or folder")
    return HubDataset(source.path, _hub_commit(source))


def resolved_revision(source: Source) -> str | None:
    """The commit of a hub dataset; None for files."""
    location = resolve(source)
    return location.commit if isinstance(location, HubDataset) else None


def source_fingerprint(source: Source) -> str:
    """A hash of all that decides the text of a source: files by name, size and time, and how they are read.

    Files' contents are not read. A hub dataset counts by its commit.
    """
    location = resolve(source)
    reading: dict[str, Any] = {"text_field": source.text_field, "fields": source.fields, "slice": source.slice}
    if isinstance(location, HubDataset):
        reading |= {"hub": location.name, "commit": location.commit, "split": source.split, "subset": source.subset}
    else:
        stats = [path.stat() for path in location.paths]
        reading["files"] = [
            [name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(location.names, stats, strict=True)
        ]
    return fingerprint(reading)


def fingerprint(tree: Any) -> str:
    """32 hexadecimal digits that stand for a tree of plain values."""
    return blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_kind(path: Path) -> str | None:
    """The suffix that says how a file is read, less a compression's; None: it is not read."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = Path(name).suffix
    return suffix if suffix in TEXT_SUFFIXES + ROW_SUFFIXES else None


def open_binary(path: Path) -> BinaryIO:
    """A file opened for reading, decompressed by its suffix."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdReader(path), buffer_size=1 << 18))
    return path.open("rb")


class _ZstdReader(io.RawIOBase):
    """Decompresses all frames of a file; unlike zstandard's own reader it does not take a cut-off file for a whole."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decompressor = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
        self._compressed = b""
        self._plain = b""
        self._in_frame = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            self._compressed = self._compressed or self._file.read(1 << 17)
            if not self._compressed:
                if self._in_frame:
                    raise EOFError("the compressed file ends before its end-of-stream marker")
                return 0
            if self._decompressor.eof:
                self._decompressor = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
            self._plain = self._decompressor.decompress(self._compressed)
            self._in_frame = not self._decompressor.eof
            self._compressed = self._decompressor.unused_data if self._decompressor.eof else b""
        size = min(len(buffer), len(self._plain))
        buffer[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        return size


def _readable(source_path: str, found: list[Path], root: Path) -> Files:
    """The files among `found` that are read, and a count of the rest."""
    arrow_folders = {path.parent for path in found if path.suffix == ".arrow"}
    read = [
        path
        for path in found
        if file_kind(path) is not None and not (path.name in DATASET_METADATA and path.parent in arrow_folders)
    ]
    if not read:
        raise ValueError(f"{source_path}: holds no file that is read ({READABLE})")
    not_read = Counter(path.suffix.lower() or path.name for path in set(found) - set(read))
    names = tuple(path.relative_to(root).as_posix() for path in read)
    return Files(tuple(read), names, dict(sorted(not_read.items())))


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _hub_commit(source: Source) -> str:
    """The commit that a hub dataset's revision stands for; a full commit hash is taken as it is."""
    if source.revision is not None and COMMIT.fullmatch(source.revision):
        return source.revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        commit = HfApi().dataset_info(source.path, revision=source.revision).sha
    except (RepositoryNotFoundError, HFValidationError):
        raise ValueError(f"{source.path}: no such file or folder, and no such dataset on the hub") from None
    except OfflineModeIsEnabled:
        raise ValueError(
            f"{source.path}: no such file or folder, and the hub is off (HF_HUB_OFFLINE); "
            "to reuse a store of a hub dataset offline give its full commit as the source's revision"
        ) from None
    except Exception as error:  # the hub's client raises several libraries' network errors
        raise ValueError(
            f"{source.path}: no such file or folder, and the hub cannot be asked ({' '.join(str(error).split())})"
        ) from None
    assert commit is not None, source.path
    return commit
