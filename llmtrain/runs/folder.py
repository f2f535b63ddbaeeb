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
from typing import Any

import torch
from safetensors import SafetensorError

from llmtrain.config.load import read_yaml, save_config
from llmtrain.config.recipes import RecipeConfig
from llmtrain.config.sections import RunConfig, Section, TrainConfig
from llmtrain.models.folders.adapter import AdapterSpec, export_adapter
from llmtrain.models.folders.card import model_card
from llmtrain.models.folders.model import WRAPPER_PREFIX, ExportSpec, export_model, push_model
from llmtrain.system.files import write_json
from llmtrain.train.checkpoint import Checkpoint
from llmtrain.train.run_log import METRICS_FILE

# What may differ when a run is continued; anything else makes it another run.
MAY_CHANGE = (
    "run.resume",
    "run.push_to_hub",
    "run.timeout_minutes",
    "data.cache_dir",
    "train.steps",
    "train.epochs",
    "train.microbatch_tokens",
    "train.compile",
    "train.activation_checkpointing",
    "train.max_nonfinite_steps",
    "train.spike_factor",
    "eval.every",
    "eval.patience",
    "checkpoint",
    "log",
    "policy.kl_budget",
)
# Facts that a continued run must find unchanged.
PINNED = ("model_revision", "base_fingerprint", "tokenizer_fingerprint", "stores", "shared_prompts")
UNFINISHED = "config.yaml.partial"  # all that a run leaves that is stopped while it makes its folder
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


def open_run(run: RunConfig, config: Section) -> Path:
    """The run's folder, made if need be and checked to hold this run or nothing.

    Raises ValueError where the folder holds another run, or files that are no run at all, or cannot be written.
    """
    folder = Path(run.dir)
    saved = folder / "config.yaml"
    if saved.exists():
        if run.resume == "never":
            raise ValueError(f"run.dir={folder} holds a run already and run.resume is never: choose another folder")
        difference = _first_difference(read_yaml(saved), config.model_dump(), MAY_CHANGE)
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
    return mark.is_file() and _first_difference(read_yaml(mark), config.model_dump(), IMMATERIAL) is None


def record_ledger(folder: Path, data: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Write `ledger.json`: where every byte and token of the data went, and how much of it was trained on."""
    write_json(folder / "ledger.json", {**data, "training": training})


def export_run(
    folder: Path,
    config: RecipeConfig,
    checkpoint: Checkpoint,
    spec: ExportSpec,
    adapter: AdapterSpec | None = None,
) -> Path:
    """Write `model/` from a checkpoint, from its average if the run keeps one, without a critic.

    `adapter`: what was trained is an adapter; None: the whole model. Raises ValueError where the disk is full, or
    `run.push_to_hub` is set and the hub refuses.
    """
    weights = checkpoint.read_all("model")
    if config.train.ema_decay is not None:
        weights |= checkpoint.read_all("ema")
    weights = {name: weight for name, weight in weights.items() if name.startswith(WRAPPER_PREFIX)}
    final, partial = folder / "model", folder / "model.partial"
    card = model_card(
        config=config.model_dump(),
        ledger=json.loads((folder / "ledger.json").read_text(encoding="utf-8")),
        values=_last_values(folder / METRICS_FILE, checkpoint.step),
        versions=dict(_versions()),
        num_parameters=sum(tensor.numel() for tensor in weights.values()),
        adapter_of=None if adapter is None else config.model.path,
        kind=spec.kind,
    )
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if adapter is None:
            export_model(partial, weights, card, spec)
        else:
            export_adapter(partial, weights, card, spec, adapter)
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
