"""Where a source's text is: the files of a path, glob or folder, or a dataset of the hub."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llmtrain.config.data import Source
from llmtrain.data.ledger import not_read_summary
from llmtrain.data.sources.compressed import COMPRESSIONS
from llmtrain.data.sources.content import content_hashes
from llmtrain.data.sources.folders import each_once, files_of
from llmtrain.data.sources.readers import READERS, TEXT_SUFFIXES
from llmtrain.data.sources.splits import EVERY_FILE, Folder, splits_of
from llmtrain.data.store.token_store import META, is_store
from llmtrain.system.files import one_line
from llmtrain.system.paths import local_path
from llmtrain.system.typing import Report

READABLE = f"{' '.join([*TEXT_SUFFIXES, *READERS])}, each also with {' or '.join(COMPRESSIONS)}"
ON_REQUEST = "the source's text_suffixes, such as [.py], names others to read as text"

METADATA = frozenset({"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"})
"""What the hub and `datasets` write beside data, and `datasets` does not read either."""
SAVED_STATE = "state.json"
CARD_NAME = re.compile(r"(readme|licen[cs]e|citation|changelog)([-_.].*)?", re.IGNORECASE)
"""Texts that beside files of rows are about those; in a folder of texts they are texts."""
DEFAULT_SPLIT = "train"
SPLIT = re.compile(r"\w+(\.\w+)*")
PLACE = {"path", "weight", "split", "subset", "revision", "exclude", "text_suffixes"}
"""Keys of a source that say where it is, not how it is read; the kind of a file is part of what is read."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Files:
    """Files to read, in order."""

    paths: tuple[Path, ...]
    not_read: Mapping[str, int]  # why or of what suffix -> number of files passed over


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the hub at one commit."""

    name: str
    commit: str


@dataclass(frozen=True)
class Content:
    """What a source holds: a hub dataset counts by its commit, files by their content in order."""

    location: Files | HubDataset
    parts: tuple[str, ...]  # a hash of each file's content, or the commit, split and subset
    fingerprint: str  # of all that decides the text: the parts and how they are read, but no name, place or time


def whole_source(path: str) -> Source:
    """All of a folder, whatever split it is for; of a hub dataset the split that is trained on."""
    return Source(path=path, split=EVERY_FILE if local_path(path).is_dir() else "train")


def resolve(source: Source) -> Files | HubDataset:
    """The files or the hub dataset that a source names.

    Raises ValueError if there is none, none that can be read, or no such split, subset or revision.
    """
    if not SPLIT.fullmatch(source.split):
        raise ValueError(
            f"{source.path}: split={source.split} is not the name of a split; name one, and give a part of it as the "
            "source's slice, such as slice=0%:10%"
        )
    if rows := sorted({suffix.lower() for suffix in source.text_suffixes} & READERS.keys()):
        raise ValueError(f"{source.path}: text_suffixes={rows[0]} does nothing here: such files hold rows")
    path = local_path(source.path)
    if path.is_dir():
        found, passed_over = files_of(path)
        _refuse_stores(found)
        return _of_folder(source, path, found, passed_over)
    if path.is_file():
        _refuse_selection(source, "a file", ("split", "subset", "revision", "exclude"))
        if file_kind(path, source) is None:
            raise ValueError(f"{path}: files of this suffix are not read, only {READABLE}; {ON_REQUEST}")
        return Files((path,), {})
    if glob.has_magic(source.path):
        found, passed_over = each_once([Path(match) for match in glob.glob(str(path), recursive=True)])
        if not found:
            rest = f" ({not_read_summary(passed_over)})" if passed_over else ""
            raise ValueError(f"{source.path}: no file matches{rest}")
        _refuse_stores(found)
        _refuse_selection(source, "a glob", ("split", "subset", "revision"))
        root = Path(os.path.commonpath([each.parent for each in found]))
        found = _without_excluded(source, root, found, passed_over)
        return _nonempty(source, _readable(source, found, passed_over), passed_over)
    if file_kind(path, source) is not None or not HUB_ID.fullmatch(source.path) or source.path.startswith("."):
        raise ValueError(f"{source.path}: no such file or folder")
    _refuse_selection(source, "a dataset of the hub", ("exclude",))
    return HubDataset(source.path, _hub_commit(source))


def resolve_rows(source: Source) -> Files | HubDataset:
    """`resolve`, of a source of rows: texts in a folder, such as its README.md, are left out and counted.

    Raises ValueError as `resolve` does, and where only texts are left.
    """
    location = resolve(source)
    if isinstance(location, HubDataset):
        return location
    kinds = [file_kind(path, source) for path in location.paths]
    kept = tuple(path for path, kind in zip(location.paths, kinds, strict=True) if kind in READERS)
    if not kept:
        raise ValueError(f"{source.path}: holds text without rows; rows are read from {' '.join(READERS)} files")
    not_read = Counter(location.not_read)
    not_read.update(kind for kind in kinds if kind is not None and kind not in READERS)
    return Files(kept, dict(sorted(not_read.items())))


def content_of(source: Source, location: Files | HubDataset, cache_dir: str | None, report: Report) -> Content:
    """What is at a source's location now. Raises ValueError as `content_hashes` does."""
    reading = source.model_dump(exclude=PLACE, exclude_defaults=True)
    if isinstance(location, HubDataset):
        parts: tuple[str, ...] = (f"{location.commit} {source.split} {source.subset}",)
        return Content(location, parts, fingerprint({**reading, "hub": parts}))
    hashes = content_hashes(location.paths, cache_dir, report)
    kinds = [(file_kind(path, source), _compression(path)) for path in location.paths]
    return Content(location, tuple(hashes), fingerprint({**reading, "files": list(zip(hashes, kinds, strict=True))}))


def fingerprint(tree: Any) -> str:
    """32 hexadecimal digits, different for different trees of plain values."""
    return blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_kind(path: Path, source: Source) -> str | None:
    """The suffix that says how a file of a source is read, `.jsonl` of `rows.jsonl.gz`; None: it is not read."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = Path(name).suffix
    texts = (*TEXT_SUFFIXES, *(each.lower() for each in source.text_suffixes))
    return suffix if suffix in texts or suffix in READERS else None


def _compression(path: Path) -> str | None:
    return next((suffix for suffix in COMPRESSIONS if path.name.lower().endswith(suffix)), None)


def _of_folder(source: Source, root: Path, found: list[Path], passed_over: Counter[str]) -> Files:
    """The files of the split, subset and kinds that are read."""
    if source.revision is not None:
        _refuse_selection(source, "a folder", ("revision",))
    found = _without_excluded(source, root, found, passed_over)
    read = _readable(source, found, passed_over)
    if source.split == EVERY_FILE and source.subset is None:
        return _nonempty(source, read, passed_over)
    splits = splits_of(Folder(root, read, lambda path: file_kind(path, source) not in READERS), source.subset)
    if splits is None:
        if source.split != DEFAULT_SPLIT:
            raise ValueError(
                f"{source.path}: split={source.split} does nothing here: no folder or file is named after a split, as "
                "in test/ or test-00000-of-00001.parquet"
            )
        return _nonempty(source, read, passed_over)
    in_splits = dict.fromkeys(path for paths in splits.values() for path in paths)
    kept = list(in_splits) if source.split == EVERY_FILE else splits.get(source.split)
    if not kept:
        named = ", ".join(f"{split} ({len(paths):,} files)" for split, paths in splits.items())
        raise ValueError(
            f"{source.path}: has no split {source.split}, only {named}; set the source's split to one of them, or to "
            f"{EVERY_FILE} for every file"
        )
    for split, paths in splits.items():
        passed_over[f"of split {split}"] += len(set(paths) - set(kept))
    passed_over["of no split"] += len(set(read) - set(in_splits))
    return _nonempty(source, sorted(kept), passed_over)


def _readable(source: Source, found: Sequence[Path], passed_over: Counter[str]) -> list[Path]:
    """The files that hold text or rows; metadata of data sets, cards beside rows, and what is not read are counted."""
    states = {path.parent: _saved_files(path) for path in found if path.name == SAVED_STATE}
    saved = {folder: names for folder, names in states.items() if names}
    reasons = {path: _not_data(source, path, saved) for path in found}
    if any(reason is None and file_kind(path, source) in READERS for path, reason in reasons.items()):
        reasons |= {path: path.name for path, reason in reasons.items() if CARD_NAME.fullmatch(path.name)}
    passed_over.update(reason for reason in reasons.values() if reason is not None)
    return [path for path, reason in reasons.items() if reason is None]


def _not_data(source: Source, path: Path, saved: Mapping[Path, frozenset[str]]) -> str | None:
    """Why a file is not read, by its name; None: it is. `saved`: folder -> its files of data, of saved data sets."""
    if file_kind(path, source) is None:
        return path.suffix.lower() or path.name
    if path.name in METADATA or path.name.endswith(".index.json"):
        return path.name
    if path.parent in saved and path.name not in saved[path.parent]:
        return path.name if path.name == SAVED_STATE else "beside a saved data set"
    return None


def _saved_files(state: Path) -> frozenset[str]:
    """The data files that the state.json of `Dataset.save_to_disk` names; none of another state.json."""
    try:
        tree = json.loads(state.read_text(encoding="utf-8"))
        return frozenset(str(file["filename"]) for file in tree["_data_files"])
    except (OSError, ValueError, TypeError, KeyError):
        return frozenset()


def _without_excluded(source: Source, root: Path, found: list[Path], passed_over: Counter[str]) -> list[Path]:
    """The files that no pattern of `exclude` matches. Raises ValueError for a pattern that matches none."""
    names = {path: path.relative_to(root).as_posix() for path in found}
    for pattern in source.exclude:
        matches = {path for path, name in names.items() if fnmatch(name, pattern)}
        if not matches:
            raise ValueError(f"{source.path}: exclude={pattern} matches none of its files, by their names in {root}")
        passed_over["excluded"] += len(matches)
        names = {path: name for path, name in names.items() if path not in matches}
    return list(names)


def _nonempty(source: Source, read: Sequence[Path], passed_over: Mapping[str, int]) -> Files:
    counted = {why: count for why, count in sorted(passed_over.items()) if count}
    if not read:
        rest = f"; not read: {not_read_summary(counted)}" if counted else ""
        raise ValueError(f"{source.path}: holds no file that is read ({READABLE}){rest}; {ON_REQUEST}")
    return Files(tuple(read), counted)


def _refuse_selection(source: Source, what: str, keys: Sequence[str]) -> None:
    """Raises ValueError for a key that is set and chooses among what only folders, or the hub, have."""
    given = source.model_dump(include=set(keys), exclude_defaults=True)
    for key, value in given.items():
        if (key, value) != ("split", EVERY_FILE):
            raise ValueError(f"{source.path}: {key}={value} does nothing here: this is {what}")


def _refuse_stores(found: Sequence[Path]) -> None:
    store = next((path.parent for path in found if path.name == META and is_store(path.parent)), None)
    if store is not None:
        raise ValueError(f"{store}: a token store holds no text and no rows; give what it was made of")


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
