"""The end of a run: a checkpoint becomes `model/`, a plain Hugging Face folder, and `merged/` if the run asks for it.

A folder is written next to its final name and renamed, so `model/` is whole or not there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llmtrain.config.recipes import RecipeConfig, TuningConfig
from llmtrain.models.folders.adapter import AdapterSpec, export_adapter, merge_adapter
from llmtrain.models.folders.card import model_card
from llmtrain.models.folders.model import WRAPPER_PREFIX, ExportSpec, export_model, push_model
from llmtrain.runs.folder import LEDGER, package_versions
from llmtrain.train.checkpoint import Checkpoint
from llmtrain.train.run_log import METRICS_FILE

MODEL = "model"  # the Hugging Face folder
MERGED = "merged"  # the same with its adapter merged into the base


def export_run(
    folder: Path,
    config: RecipeConfig,
    checkpoint: Checkpoint,
    spec: ExportSpec,
    adapter: AdapterSpec | None = None,
) -> Path:
    """Write `model/` from a checkpoint, from its average if the run keeps one, without a critic.

    `adapter`: what was trained is an adapter; None: the whole model. Raises ValueError if the disk is full, or
    `run.push_to_hub` is set and the hub refuses.
    """
    weights = checkpoint.read_all("model")
    if config.train.ema_decay is not None:
        weights |= checkpoint.read_all("ema")
    weights = {name: weight for name, weight in weights.items() if name.startswith(WRAPPER_PREFIX)}
    final, partial = folder / MODEL, folder / f"{MODEL}.partial"
    card = model_card(
        config=config.model_dump(),
        ledger=json.loads((folder / LEDGER).read_text(encoding="utf-8")),
        values=_last_values(folder / METRICS_FILE, checkpoint.step),
        versions=dict(package_versions()),
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


def export_tuned(
    folder: Path, config: TuningConfig, checkpoint: Checkpoint, spec: ExportSpec, base: Mapping[str, Any]
) -> str:
    """Write `model/`, and `merged/` if the run asks for it; returns what was written, for the log.

    `base`: weights and configuration of the base, compared when the adapter is opened. Raises ValueError as `export_run` and
    `merge_adapter` do.
    """
    adapter = None
    if config.adapter.kind != "none":
        adapter = AdapterSpec(
            config.adapter,
            base_path=str(spec.shape.name_or_path),
            base_revision=config.model.revision,
            # Weights in 4 bits cannot be compared with others.
            base=base if config.model.quantize is None else {"configuration": base["configuration"]},
        )
    written = str(export_run(folder, config, checkpoint, spec, adapter))
    if config.adapter.merge:
        shutil.rmtree(folder / MERGED, ignore_errors=True)
        merge_adapter(folder / MODEL, folder / MERGED, spec.trust_remote_code)
        written += f", merged: {folder / MERGED}"
    return written
