"""Where a source's text is: the files of a path, glob or folder, or a dataset of the hub."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llmtrain.config.sections import Source
from llmtrain.data.sources.compressed import COMPRESSIONS
from llmtrain.data.sources.readers import READERS, TEXT_SUFFIXES
from llmtrain.system.files import one_line

READABLE = f"{' '.join([*TEXT_SUFFIXES, *READERS])}, each also with {' or '.join(COMPRESSIONS)}"

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

    Raises ValueError if there is none, or none that can be read.
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


def resolve_rows(source: Source) -> Files | HubDataset:
    """`resolve`, of a source of rows: texts in a folder, such as its README.md, are left out and counted.

    Raises ValueError as `resolve` does, and where only texts are left.
    """
    location = resolve(source)
    if isinstance(location, HubDataset):
        return location
    kinds = [file_kind(path) for path in location.paths]
    kept = [index for index, kind in enumerate(kinds) if kind in READERS]
    if not kept:
        raise ValueError(f"{source.path}: holds text without rows; rows are read from {' '.join(READERS)} files")
    not_read = Counter(location.not_read)
    not_read.update(kind for kind in kinds if kind in TEXT_SUFFIXES)
    return Files(
        paths=tuple(location.paths[index] for index in kept),
        names=tuple(location.names[index] for index in kept),
        not_read=dict(sorted(not_read.items())),
    )


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
    """32 hexadecimal digits, different for different trees of plain values."""
    return blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_kind(path: Path) -> str | None:
    """The suffix that says how a file is read, `.jsonl` of `rows.jsonl.gz`; None: it is not read."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = Path(name).suffix
    return suffix if suffix in TEXT_SUFFIXES or suffix in READERS else None


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
    """The commit of a hub dataset's revision; a full commit hash is taken as it is."""
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
            f"{source.path}: no such file or folder, and the hub cannot be asked ({one_line(error)})"
        ) from None
    assert commit is not None, source.path
    return commit
