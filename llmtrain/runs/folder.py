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
from typing import Any

from llmtrain.config.load import read_yaml, save_config
from llmtrain.config.sections import RunConfig, Section, marks_on_resume
from llmtrain.system.files import write_json

# Files of a run's folder; those of its log, its checkpoints and its model are named where they are written.
CONFIG = "config.yaml"  # the whole configuration, defaults included
ENVIRONMENT = "environment.json"  # versions, machine, command line, what a resumed run must find again
LEDGER = "ledger.json"  # what became of every document, byte and token
FINISHED = "finished.yaml"  # the configuration of a run that came to its end
UNFINISHED = f"{CONFIG}.partial"  # all that a run leaves if it is stopped while it makes its folder

# Facts that a continued run must find unchanged.
PINNED = ("model_revision", "base_fingerprint", "tokenizer_fingerprint", "stores", "shared_prompts", "sample_order")
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

    Raises ValueError if it holds another run, or files that are not a run, or cannot be written.
    """
    folder = Path(run.dir)
    saved = folder / CONFIG
    if saved.exists():
        if run.resume == "never":
            raise ValueError(f"run.dir={folder} holds a run already and run.resume is never: choose another folder")
        difference = _first_difference(read_yaml(saved), config.model_dump(), may_change(type(config)))
        if difference is not None:
            key, there, here = difference
            raise ValueError(
                f"run.dir={folder} holds another run ({key} is {there!r} there and {here!r} here): "
                "choose another folder, or remove that one"
            )
    elif folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {UNFINISHED}):
        raise ValueError(f"run.dir={folder} is not empty and is not a run: choose another folder")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"run.dir={folder}: {existing} is not a folder that you may write to: choose another one")
    return folder


def record_run(folder: Path, config: Section, facts: Mapping[str, Any]) -> None:
    """Write `config.yaml`, resolved, and `environment.json`: versions, machine, command line and `facts`.

    Raises ValueError if model, tokenizer or data are no longer those that the run started with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / ENVIRONMENT).exists():
        started = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        for name in PINNED:
            then, now = (values.get(name) for values in (started, facts))
            if then != now:
                raise ValueError(
                    f"run.dir={folder}: {name.replace('_', ' ')} was {then} when this run started and is {now} now: "
                    "bring back what it started with (model.revision, tokenizer.revision, data, machine), or start "
                    "another run"
                )
    save_config(config, folder / UNFINISHED)
    (folder / UNFINISHED).rename(folder / CONFIG)  # whole or not at all: it says whose the folder is
    environment = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": dict(package_versions()),
        **facts,
    }
    write_json(folder / ENVIRONMENT, environment)


def mark_finished(folder: Path, config: Section) -> None:
    """Note that a run has come to its end and written all that it writes."""
    partial = folder / f"{FINISHED}.partial"
    save_config(config, partial)
    partial.rename(folder / FINISHED)


def is_finished(folder: Path, config: Section) -> bool:
    """Whether a folder holds the finished run of a configuration."""
    mark = folder / FINISHED
    return mark.is_file() and _first_difference(read_yaml(mark), config.model_dump(), immaterial(type(config))) is None


def record_ledger(folder: Path, data: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Write `ledger.json`: where every byte and token of the data went, and how much of it was trained on."""
    write_json(folder / LEDGER, {**data, "training": training})


def package_versions() -> Iterator[tuple[str, str]]:
    """(name, version) of the installed packages that a run depends on."""
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue  # an optional one


def _first_difference(there: Any, here: Any, leave_out: Sequence[str], key: str = "") -> tuple[str, Any, Any] | None:
    if key in leave_out or there == here:
        return None
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        differences = (_first_difference(*items, leave_out, key) for items in zip(there, here, strict=True))
        return next((difference for difference in differences if difference is not None), None)
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return key, there, here
    for name in [*here, *(name for name in there if name not in here)]:
        inner = _first_difference(there.get(name), here.get(name), leave_out, f"{key}.{name}" if key else name)
        if inner is not None:
            return inner
    return None
