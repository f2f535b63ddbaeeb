"""A checkpoint becomes `model/`, a plain Hugging Face folder, and `merged/` if the run asks for it.

A folder is written next to its final name and renamed, so `model/` is whole or not there.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from llmtrain.config.recipes import RecipeConfig, TuningConfig
from llmtrain.models.folders.adapter import export_adapter, merge_adapter
from llmtrain.models.folders.card import CardFacts, model_card
from llmtrain.models.folders.card_before_after import Pair
from llmtrain.models.folders.files import TRAINING
from llmtrain.models.folders.kind import as_described
from llmtrain.models.folders.model import WRAPPER_PREFIX, ExportSpec, export_model, push_model
from llmtrain.runs.before_after import pair_of
from llmtrain.runs.folder import LEDGER, package_versions, read_json
from llmtrain.system.files import FREE_RUN, one_line, write_json
from llmtrain.system.precision import DTYPES, name_of
from llmtrain.system.run_files import METRICS_FILE
from llmtrain.system.terminal import say
from llmtrain.train.checkpoint import Checkpoint
from llmtrain.train.run_log import read_rows

MODEL = "model"  # the Hugging Face folder
MERGED = "merged"  # the same with its adapter merged into the base


def export_run(folder: Path, config: RecipeConfig, checkpoint: Checkpoint, spec: ExportSpec) -> str:
    """Write `model/`, and `merged/` if the run asks for it; returns what was written, for the log.

    Raises ValueError as `export_checkpoint` and `merge_adapter` do, and if the hub refuses `run.push_to_hub`.
    """
    export_checkpoint(folder, config, checkpoint, spec, folder / MODEL)
    written = str(folder / MODEL)
    if spec.adapter is None:
        written += f", in {name_of(_asked_dtype(config) or spec.dtype)}"
    if config.run.push_to_hub is not None:
        push_model(folder / MODEL, config.run.push_to_hub)
    if isinstance(config, TuningConfig) and config.adapter.merge:
        shutil.rmtree(folder / MERGED, ignore_errors=True)
        dtype = merge_adapter(folder / MODEL, folder / MERGED, spec.trust_remote_code, dtype=_asked_dtype(config))
        written += f", merged: {folder / MERGED}, in {name_of(dtype)}"
    return written


def export_checkpoint(
    folder: Path, config: RecipeConfig, checkpoint: Checkpoint, spec: ExportSpec, output: Path
) -> None:
    """Write a model's folder from a checkpoint of a run, from its average if the run keeps one, without a critic.

    A folder of the name is replaced. Raises ValueError if the disk is full.
    """
    weights = checkpoint.read_all("model")
    if config.train.ema_decay is not None:
        weights |= checkpoint.read_all("ema")
    weights = {name: weight for name, weight in weights.items() if name.startswith(WRAPPER_PREFIX)}
    partial = output.with_name(f"{output.name}.partial")
    ledger = _ledger(folder, checkpoint)
    before, after = _held_out_values(folder, checkpoint.step)
    card = model_card(
        CardFacts(
            config=config.model_dump(),
            ledger=ledger,
            before=before,
            after=after,
            num_parameters=sum(tensor.numel() for tensor in weights.values()),
            chats=spec.tokenizer.chat_template is not None,
            has_stop_texts=bool(spec.generation.get("stop_strings")),
            is_adapter=spec.adapter is not None,
            kind=as_described(spec.kind, spec.shape),
            origin=spec.origin,
            pair=_pair(folder, checkpoint.step),
        )
    )
    training = {
        "config": config.model_dump(),
        "versions": dict(package_versions()),
        "ledger": ledger,
        "values": _last_values(folder, checkpoint.step),
    }
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if spec.adapter is None:
            export_model(partial, weights, card, replace(spec, dtype=_asked_dtype(config) or spec.dtype))
        else:
            export_adapter(partial, weights, card, spec)
        write_json(partial / TRAINING, training, FREE_RUN)
    except (OSError, SafetensorError) as error:  # a full disk, mostly
        shutil.rmtree(partial, ignore_errors=True)
        raise ValueError(
            f"cannot write the model {output}: {error}; {checkpoint.path} holds it: free space on the disk, start again"
        ) from None
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)


def _pair(folder: Path, step: int) -> Pair | None:
    """The pair of before and after, if it can be read; a line of the log says why not."""
    try:
        return pair_of(folder, step)
    except Exception as error:  # whatever it is, the model is well
        say(f"warning: the model card has no comparison of before and after: {one_line(error)}")
        return None


def _asked_dtype(config: RecipeConfig) -> torch.dtype | None:
    """The type that `checkpoint.export_dtype` names; None: that of the base."""
    return DTYPES.get(config.checkpoint.export_dtype)


def _ledger(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """What became of the data, and what was trained on up to a checkpoint: a run writes that of its end only."""
    ledger = read_json(folder / LEDGER, "start the run's command again, which writes it")
    if ledger.get("training", {}).get("steps") != checkpoint.step:
        ledger["training"] = {"steps": checkpoint.step, "tokens_trained": checkpoint.state["progress"]["tokens"]}
    return ledger


def _held_out_values(folder: Path, step: int) -> tuple[dict[str, float], dict[str, float]]:
    """The values of the first evaluation, and of the last one up to a step; finite ones."""
    rows = [row for row in read_rows(folder / METRICS_FILE)[0] if "eval_loss" in row and row["step"] <= step]
    finite = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return (finite[0] if len(finite) > 1 else {}, finite[-1]) if finite else ({}, {})


def _last_values(folder: Path, step: int) -> dict[str, float]:
    """The last of each value in `metrics.jsonl` up to a step."""
    values: dict[str, float] = {}
    for row in read_rows(folder / METRICS_FILE)[0]:
        if row["step"] <= step:
            values |= {name: value for name, value in row.items() if value is not None}  # None: it was not finite
    return values
