"""The splits of a folder in one of the hub's layouts, found as the `datasets` library finds them.

In this order: `dataset_dict.json` of `DatasetDict.save_to_disk`; `configs` in the README.md; shards such as
`data/train-00000-of-00001.parquet`; folders named after a split (`train/`, `my-test.2/`); files named after one
(`train.jsonl`, `rows_val_2.csv`). In names of folders and files, `val`, `valid` and `dev` mean validation, `eval` means
test. Files in no split are left out. The one difference from `datasets`: the name of a text may be its title, so texts
such as `a test of time.txt` make a layout only if there is also a split train, or no other file.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.utils import glob_translate

from llmtrain.config.load import parsed_yaml
from llmtrain.system.files import one_line

CARD, DICT = "README.md", "dataset_dict.json"
EVERY_FILE = "all"
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
BETWEEN = r"[-._ 0-9]"
SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
FRONT_MATTER = re.compile(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)

Splits = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class Folder:
    """A folder and the files in it that hold text or rows, in order."""

    root: Path
    files: Sequence[Path]
    is_text: Callable[[Path], bool]  # whether a file is one text, not rows

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def below(self, name: str) -> Folder:
        """A folder in this one."""
        root = self.root / name
        return Folder(root, [path for path in self.files if root in path.parents], self.is_text)


def splits_of(folder: Folder, subset: str | None) -> Splits | None:
    """The files of every split, of a subset if one is named; None: the folder has no splits.

    Raises ValueError, one line, for a subset that is not there, or has to be named.
    """
    if (folder.root / DICT).is_file():
        if subset is not None:
            raise ValueError(f"{folder.root}: subset={subset} does nothing here: {DICT} names no subsets")
        names = _json_object(folder.root / DICT).get("splits")
        if not isinstance(names, list) or not names:
            raise ValueError(f"{folder.root / DICT}: names no splits")
        return {str(name): folder.below(str(name)).files for name in names}
    configs = _configs(folder.root / CARD)
    config = _config(folder.root, configs, subset)
    if config is not None:
        data_dir = config.get("data_dir")
        below = folder if data_dir is None else folder.below(str(data_dir))
        named = _named_by_card(below, config.get("data_files"))
        if named is None:
            named = _named_by_files(below)
        return {"train": below.files} if named is None and data_dir is not None else named
    if subset is not None:
        below = folder.below(subset)
        if not below.files:
            known = f", and its {CARD} names {', '.join(configs)}" if configs else ""
            raise ValueError(f"{folder.root}: subset={subset} does nothing here: it has no folder of that name{known}")
        return splits_of(below, None) or {"train": below.files}
    return _named_by_files(folder)


def _json_object(path: Path) -> Mapping[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)})") from None
    return tree if isinstance(tree, dict) else {}


def _configs(card: Path) -> dict[str, Mapping[str, Any]]:
    """name -> configuration, of the front matter of a card."""
    if not card.is_file():
        return {}
    matter = FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    try:
        tree = parsed_yaml(matter[1]) if matter else None
    except ValueError as error:
        if matter and re.search(r"^configs:", matter[1], re.MULTILINE):
            raise ValueError(f"{card}: its configs cannot be read ({error}); fix them") from None
        return {}  # a text that begins with a rule
    configs = tree.get("configs") if isinstance(tree, dict) else None
    if configs is None:
        return {}
    if not isinstance(configs, list) or not all(isinstance(each, dict) and "config_name" in each for each in configs):
        raise ValueError(f"{card}: configs must be a list, each with a config_name")
    named: dict[str, Mapping[str, Any]] = {str(each["config_name"]): each for each in configs}
    for name, config in named.items():
        entries = config.get("data_files") or []
        given = [entries] if isinstance(entries, str) else entries
        if not isinstance(given, list) or not all(_names_files(entry) for entry in given):
            raise ValueError(f"{card}: data_files of {name} must be patterns or a list of split and path")
    return named


def _names_files(entry: Any) -> bool:
    return isinstance(entry, str) or (isinstance(entry, dict) and {"split", "path"} <= entry.keys())


def _config(root: Path, configs: Mapping[str, Mapping[str, Any]], subset: str | None) -> Mapping[str, Any] | None:
    """The configuration that is asked for, the default, or the only one; None: none is named. Raises ValueError."""
    if subset is not None:
        return configs.get(subset)
    defaults = [config for name, config in configs.items() if name == "default" or config.get("default")]
    if len(defaults) > 1:
        raise ValueError(f"{root}: its {CARD} names several default subsets; set subset to one of {', '.join(configs)}")
    if len(configs) > 1 and not defaults:
        raise ValueError(f"{root}: its {CARD} names several subsets; set subset to one of {', '.join(configs)}")
    return next(iter(defaults or configs.values()), None)


def _named_by_card(folder: Folder, data_files: Any) -> Splits | None:
    """The splits of a configuration's `data_files`: a pattern, patterns, or a list of `{split, path}`."""
    if data_files is None:
        return None
    entries = data_files if isinstance(data_files, list) else [data_files]
    if not all(isinstance(entry, dict) for entry in entries):
        entries = [{"split": "train", "path": entries}]
    splits: dict[str, Sequence[Path]] = {}
    for entry in entries:
        paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        matches = [re.compile(glob_translate(str(path).removeprefix("./"))) for path in paths]
        splits[str(entry["split"])] = [
            path for path in folder.files if any(match.match(folder.name(path)) for match in matches)
        ]
        gone = [path for path in paths if not glob.glob(str(path), root_dir=folder.root, recursive=True)]
        if splits[str(entry["split"])] and gone:
            raise ValueError(f"{folder.root}: its {CARD} names {gone[0]} of split {entry['split']}, which is not there")
    return splits


def _named_by_files(folder: Folder) -> Splits | None:
    """The splits that the names of shards, folders or files say; None: they say none."""
    shards: dict[str, list[Path]] = {}
    for path in folder.files:
        shard = SHARD.fullmatch(folder.name(path))
        if shard is not None:
            shards.setdefault(shard[1], []).append(path)
    if shards:
        return shards
    for is_named in (_folder_is_named, _file_is_named):
        splits = {split: [path for path in folder.files if is_named(folder.name(path), split)] for split in KEYWORDS}
        found = {split: paths for split, paths in splits.items() if paths}
        if found:
            return found if _is_layout(folder, found) else None
    return None


def _is_layout(folder: Folder, found: Splits) -> bool:
    in_splits = {path for paths in found.values() for path in paths}
    has_rows = not all(folder.is_text(path) for path in in_splits)
    return has_rows or ("train" in found and len(found) > 1) or len(in_splits) == len(folder.files)


def _folder_is_named(name: str, split: str) -> bool:
    return any(IN_FOLDER[split].fullmatch(part) for part in name.split("/")[:-1])


def _file_is_named(name: str, split: str) -> bool:
    return IN_FILE[split].fullmatch(name.rsplit("/", 1)[-1]) is not None


IN_FOLDER = {
    split: re.compile(rf"(?:.*{BETWEEN})?(?:{'|'.join(words)})(?:{BETWEEN}.*)?") for split, words in KEYWORDS.items()
}
IN_FILE = {split: re.compile(rf"(?:.*{BETWEEN})?(?:{'|'.join(words)}){BETWEEN}.*") for split, words in KEYWORDS.items()}
