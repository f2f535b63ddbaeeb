"""The folder of a run: which run it holds, what was asked for, and on what it ran."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

from llmtrain.config.load import read_yaml, save_config
from llmtrain.config.sections import RunConfig, Section, marks_on_resume, section_of
from llmtrain.runs.facts import Facts, first_difference, refuse_changed, without_numbers
from llmtrain.system.files import FREE_RUN, one_line, write_json
from llmtrain.system.lease import LEASE
from llmtrain.system.paths import local_path
from llmtrain.system.run_files import MEETING_PREFIX

# Files of a run's folder; those of its log, its checkpoints and its model are named where they are written.
CONFIG = "config.yaml"  # the whole configuration, defaults included
ENVIRONMENT = "environment.json"  # versions, machine, command line, what a resumed run must find again
LEDGER = "ledger.json"  # what became of every document, byte and token
FINISHED = "finished.yaml"  # the configuration of a run that came to its end
UNFINISHED = f"{CONFIG}.partial"  # all that a run leaves if it is stopped while it makes its folder

CHECKPOINTS = "checkpoints"  # the folder of checkpoints

PINNED = "pinned"  # the facts, in `environment.json`
PACKAGES = (
    "llmtrain",
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "datasets",
    "tokenizers",
    "safetensors",
    "peft",
    "bitsandbytes",
    "gguf",
)


def may_change(schema: type[Section]) -> list[str]:
    """The keys and sections that may differ when a run is continued; any other makes it another run."""
    return [key for key, _ in marks_on_resume(schema)]


def immaterial(schema: type[Section]) -> list[str]:
    """Those of them that change nothing of what a finished run has made."""
    return [key for key, mark in marks_on_resume(schema) if not mark.matters]


def check_folder(run: RunConfig, config: Section) -> Path:
    """The run's folder, which holds this run or nothing yet.

    Keys that say where something is may differ: `record_run` judges what is there. Raises ValueError if it holds
    another run, or files that are not a run, or cannot be read or written.
    """
    folder = Path(run.dir)
    try:
        _check_folder(folder, run, config)
    except OSError as error:
        raise ValueError(f"run.dir={folder}: cannot be read ({error.strerror}): choose another folder") from None
    return folder


def _check_folder(folder: Path, run: RunConfig, config: Section) -> None:
    saved = folder / CONFIG
    if saved.exists():
        if run.resume == "never":
            raise ValueError(f"run.dir={folder} holds a run already and run.resume is never: choose another folder")
        there = read_config(saved)
        if (missing := _missing_key(type(config), there)) is not None:
            raise ValueError(
                f"{saved} has no {missing}: it was cut off, or another version of llmtrain wrote it; bring it back "
                "from a copy, or start another run in another run.dir"
            )
        difference = first_difference(there, config.model_dump(), may_change(type(config)))
        if difference is not None:
            key, there, here = difference
            raise ValueError(
                f"run.dir={folder} holds another run ({key} is {there!r} there and {here!r} here): "
                "choose another folder, or remove that one"
            )
    elif folder.exists() and (not folder.is_dir() or any(_is_foreign(path.name) for path in folder.iterdir())):
        raise ValueError(f"run.dir={folder} is not empty and is not a run: choose another folder")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"run.dir={folder}: {existing} is not a folder that you may write to: choose another one")


def _missing_key(schema: type[Section], tree: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first key that a saved configuration lacks; one that is whole has every key, defaults included."""
    for name, field in schema.model_fields.items():
        is_null = tree.get(name) is None
        if name not in tree or (is_null and type(None) not in get_args(field.annotation)):
            return f"{prefix}{name}"
        inner = section_of(field)
        if inner is not None and isinstance(tree[name], Mapping):
            missing = _missing_key(inner, tree[name], f"{prefix}{name}.")
            if missing is not None:
                return missing
    return None


def _is_foreign(name: str) -> bool:
    """Whether a file in a folder without a configuration is nothing that a run leaves before it has one."""
    return name != UNFINISHED and not LEASE.fullmatch(name) and not name.startswith(MEETING_PREFIX)


def record_run(folder: Path, config: Section, machine: Mapping[str, Any], facts: Facts) -> None:
    """Write `config.yaml`, resolved, and `environment.json`: versions, command line, `machine` and `facts`.

    Raises ValueError if the facts are no longer those that the run started with, or cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / ENVIRONMENT).exists() or (folder / CHECKPOINTS).exists():
        fix = "it says what the run started with: bring it back from a copy, or start another run"
        refuse_changed(read_json(folder / ENVIRONMENT, fix).get(PINNED), facts, f"run.dir={folder}")
    save_config(config, folder / CONFIG)  # first: it says whose the folder is
    environment = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": dict(package_versions()),
        **machine,
        PINNED: facts.to_dict(),
    }
    write_json(folder / ENVIRONMENT, environment, FREE_RUN)


def mark_finished(folder: Path, config: Section) -> None:
    """Note that a run has come to its end and written all that it writes."""
    save_config(config, folder / FINISHED)


def is_finished(folder: Path, config: Section) -> bool:
    """Whether a folder holds the finished run of a configuration; data and models count by where they are.

    Raises ValueError if what it holds cannot be read.
    """
    mark = folder / FINISHED
    if not mark.is_file():
        return False
    there, here = read_config(mark), config.model_dump()
    places = [key for key, each in marks_on_resume(type(config)) if each.names_content]
    there, here = (_with_real_paths(tree, places) for tree in (there, here))
    return first_difference(there, here, immaterial(type(config))) is None


def read_config(path: Path) -> dict[str, Any]:
    """A configuration that a run saved. Raises ValueError naming the file and the fix if it cannot be read."""
    try:
        return read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{error}: bring it back from a copy, or start another run in another run.dir") from None


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """The mapping in a file of a run. Raises ValueError naming the file and the fix if it cannot be read."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}): {fix}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} cannot be read (not a mapping): {fix}")
    return tree


def _with_real_paths(tree: Any, places: Sequence[str], key: str = "") -> Any:
    """A tree in which the texts of some keys, and all within them, are absolute paths without links."""
    if without_numbers(key) in places:
        return _real_paths(tree)
    if isinstance(tree, dict):
        return {name: _with_real_paths(value, places, f"{key}.{name}" if key else name) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_with_real_paths(value, places, f"{key}[{i}]") for i, value in enumerate(tree)]
    return tree


def _real_paths(value: Any) -> Any:
    if isinstance(value, str):
        return os.path.realpath(local_path(value))
    if isinstance(value, dict):
        return {name: _real_paths(each) for name, each in value.items()}
    return [_real_paths(each) for each in value] if isinstance(value, list) else value


def record_ledger(folder: Path, data: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> None:
    """Write `ledger.json`: where every byte and token of the data went, and how much was trained on, once known."""
    write_json(folder / LEDGER, {**data, **({} if training is None else {"training": training})}, FREE_RUN)


def package_versions() -> Iterator[tuple[str, str]]:
    """(name, version) of the installed packages that a run depends on."""
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue  # an optional one
