"""A checkpoint becomes `model/`, a plain Hugging Face folder, and `merged/` if the run asks for it.

A folder is written next to its final name and renamed, so `model/` is whole or not there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llmtrain.config.recipes import RecipeConfig, TuningConfig
from llmtrain.models.folders.adapter import export_adapter, merge_adapter
from llmtrain.models.folders.card import model_card
from llmtrain.models.folders.model import WRAPPER_PREFIX, export_model, push_model
from llmtrain.runs.folder import LEDGER, package_versions, read_json
from llmtrain.runs.outline import Outline
from llmtrain.train.checkpoint import Checkpoint
from llmtrain.train.run_log import METRICS_FILE, read_rows

MODEL = "model"  # the Hugging Face folder
MERGED = "merged"  # the same with its adapter merged into the base


def export_run(folder: Path, config: RecipeConfig, checkpoint: Checkpoint, outline: Outline) -> str:
    """Write `model/`, and `merged/` if the run asks for it; returns what was written, for the log.

    Raises ValueError as `export_checkpoint` and `merge_adapter` do, and if the hub refuses `run.push_to_hub`.
    """
    export_checkpoint(folder, config, checkpoint, outline, folder / MODEL)
    written = str(folder / MODEL)
    if config.run.push_to_hub is not None:
        push_model(folder / MODEL, config.run.push_to_hub)
    if isinstance(config, TuningConfig) and config.adapter.merge:
        shutil.rmtree(folder / MERGED, ignore_errors=True)
        merge_adapter(folder / MODEL, folder / MERGED, outline.spec.trust_remote_code)
        written += f", merged: {folder / MERGED}"
    return written


def export_checkpoint(
    folder: Path, config: RecipeConfig, checkpoint: Checkpoint, outline: Outline, output: Path
) -> None:
    """Write a model's folder from a checkpoint of a run, from its average if the run keeps one, without a critic.

    A folder of the name is replaced. Raises ValueError if the disk is full.
    """
    weights = checkpoint.read_all("model")
    if config.train.ema_decay is not None:
        weights |= checkpoint.read_all("ema")
    weights = {name: weight for name, weight in weights.items() if name.startswith(WRAPPER_PREFIX)}
    partial = output.with_name(f"{output.name}.partial")
    card = model_card(
        config=config.model_dump(),
        ledger=_ledger(folder, checkpoint),
        values=_last_values(folder, checkpoint.step),
        versions=dict(package_versions()),
        num_parameters=sum(tensor.numel() for tensor in weights.values()),
        adapter_of=None if outline.adapter is None else config.model.path,
        kind=outline.spec.kind,
    )
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if outline.adapter is None:
            export_model(partial, weights, card, outline.spec)
        else:
            export_adapter(partial, weights, card, outline.spec, outline.adapter)
    except (OSError, SafetensorError) as error:  # a full disk, mostly
        shutil.rmtree(partial, ignore_errors=True)
        raise ValueError(
            f"cannot write the model {output}: {error}; {checkpoint.path} holds it: free space on the disk, start again"
        ) from None
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)


def _ledger(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """What became of the data, and what was trained on up to a checkpoint: a run writes that of its end only."""
    ledger = read_json(folder / LEDGER, "start the run's command again, which writes it")
    if ledger.get("training", {}).get("steps") != checkpoint.step:
        ledger["training"] = {"steps": checkpoint.step, "tokens_trained": checkpoint.state["progress"]["tokens"]}
    return ledger


def _last_values(folder: Path, step: int) -> dict[str, float]:
    """The last of each value in `metrics.jsonl` up to a step."""
    values: dict[str, float] = {}
    for row in read_rows(folder / METRICS_FILE)[0]:
        if row["step"] <= step:
            values |= {name: value for name, value in row.items() if value is not None}  # None: it was not finite
    return values
