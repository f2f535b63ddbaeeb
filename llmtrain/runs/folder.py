"""The folder of a run: whose it is, what was asked for, on what it ran, and the model that came out."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from llmtrain.config.load import read_yaml, save_config
from llmtrain.config.recipes import RecipeConfig
from llmtrain.config.sections import RunConfig, Section, TrainConfig, marks_on_resume
from llmtrain.models.folders.card import model_card
from llmtrain.models.folders.model import push_model
from llmtrain.system.files import write_json
from llmtrain.train.checkpoint import Checkpoint

# Facts that a continued run must find unchanged.
PINNED = ("model_revision", "base_fingerprint", "tokenizer_fingerprint", "stores", "shared_prompts")
UNFINISHED = "config.yaml.partial"  # all that a run leaves that is stopped while it makes its folder
FINISHED = "config.yaml.partial"  # all that a run leaves that is stopped while it makes its folder
# What a finished run would not have come out otherwise for.
IMMATERIAL = ("run.resume", "run.push_to_hub", "run.timeout_minutes", "data.cache_dir", "log")
FINISHED = "finished.yaml"
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


def open_run(run: RunConfig, config: Section) -> Path:
    """The run's folder, made if need be and checked to hold this run or nothing.

    Raises ValueError where the folder holds another run, or files that are no run at all, or cannot be written.
    """
    folder = Path(run.dir)
    saved = folder / "config.yaml"
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
        raise ValueError(f"run.dir={folder} is not empty and holds no run: choose another folder")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"run.dir={folder}: {existing} is not a folder that you may write to: choose another one")
    return folder


def record_run(folder: Path, config: Section, facts: Mapping[str, Any]) -> None:
    """Write `config.yaml`, resolved, and `environment.json`: versions, machine, command line and `facts`.

    Raises ValueError where the model or tokenizer behind a path is no longer the one the run started with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "environment.json").exists():
        started = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        for name in PINNED:
            then, now = (values.get(name) for values in (started, facts))
            if then != now:
                raise ValueError(
                    f"run.dir={folder}: {name.replace('_', ' ')} was {then} when this run started and is {now} now: "
                    "bring back what it started with (model.revision, tokenizer.revision, data, machine), or start "
                    "another run"
                )
    save_config(config, folder / UNFINISHED)
    (folder / UNFINISHED).rename(folder / "config.yaml")  # whole or not at all: it says whose the folder is
    environment = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": dict(_versions()),
        **facts,
    }
    write_json(folder / "environment.json", environment)


def mark_finished(folder: Path, config: Section) -> None:
    """Note that a run has come to its end and written all that it writes."""
    partial = folder / f"{FINISHED}.partial"
    save_config(config, partial)
    partial.rename(folder / FINISHED)


def is_finished(folder: Path, config: Section) -> bool:
    """Whether a folder holds the finished run of a configuration."""
    mark = folder / FINISHED
    return mark.is_file() and _first_difference(read_yaml(mark), config.model_dump(), immaterial(type(config))) is None


def export_dtype(train: TrainConfig) -> torch.dtype:
    """The type of exported weights: bf16 where they were trained in it."""
    return torch.bfloat16 if train.precision == "bf16" else torch.float32


def record_ledger(folder: Path, data: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Write `ledger.json`: where every byte and token of the data went, and how much of it was trained on."""
    write_json(folder / "ledger.json", {**data, "training": training})


class Write(Protocol):
    """Writes a model folder from weights by the names of a checkpoint."""

    def __call__(self, folder: Path, *, weights: Mapping[str, Tensor], card: str) -> None: ...


def export_run(
    folder: Path,
    config: RecipeConfig,
    checkpoint: Checkpoint,
    write: Write,
    adapter_of: str | None = None,
    prefix: str = "",
) -> Path:
    """Write `model/` from a checkpoint, from its average where the run keeps one; `adapter_of`: an adapter's base.

    `prefix`: what the names of the weights that are written begin with.

    Raises ValueError where the disk is full, or `run.push_to_hub` is set and the hub refuses.
    """
    weights = checkpoint.read_all("model")
    if config.train.ema_decay is not None:
        weights |= checkpoint.read_all("ema")
    weights = {name: weight for name, weight in weights.items() if name.startswith(prefix)}
    final, partial = folder / "model", folder / "model.partial"
    card = model_card(
        config=config.model_dump(),
        ledger=json.loads((folder / "ledger.json").read_text(encoding="utf-8")),
        values=_last_values(folder / "metrics.jsonl", checkpoint.step),
        versions=dict(_versions()),
        num_parameters=sum(tensor.numel() for tensor in weights.values()),
        adapter_of=adapter_of,
    )
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial, weights=weights, card=card)
    except (OSError, SafetensorError) as error:  # a full disk, mostly
        shutil.rmtree(partial, ignore_errors=True)
        raise ValueError(
            f"cannot write the model {final}: {error}; {checkpoint.path} holds it: free space on the disk, start again"
        ) from None
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    if config.run.push_to_hub is not None:
        push_model(final, config.run.push_to_hub)
    return final


def _last_values(metrics: Path, step: int) -> dict[str, float]:
    """The last of each value in `metrics.jsonl` up to a step."""
    values: dict[str, float] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["step"] <= step:
            values |= {name: value for name, value in row.items() if value is not None}  # None: it was not finite
    return values


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue  # an optional one


def _first_difference(there: Any, here: Any, leave_out: Sequence[str], key: str = "") -> tuple[str, Any, Any] | None:
    if key in leave_out or there == here:
        return None
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return key, there, here
    for name in [*here, *(name for name in there if name not in here)]:
        inner = _first_difference(there.get(name), here.get(name), leave_out, f"{key}.{name}" if key else name)
        if inner is not None:
            return inner
    return None
