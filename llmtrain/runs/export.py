"""The end of a run that tunes a model: its checkpoint as an adapter's folder, or the whole model's."""

from __future__ import annotations

import shutil
from pathlib import Path

from llmtrain.config.recipes import TuningConfig
from llmtrain.models.folders.adapter import AdapterSpec, merge_adapter
from llmtrain.models.folders.model import ExportSpec
from llmtrain.runs.folder import export_run
from llmtrain.train.checkpoint import Checkpoint


def export_tuned(
    folder: Path,
    config: TuningConfig,
    checkpoint: Checkpoint,
    spec: ExportSpec,
    fingerprint: str | None,
) -> str:
    """Write `model/`, without a critic, and `merged/` if the run asks for it; what was written, for the log.

    `fingerprint` is the base's, compared when the adapter is opened. Raises ValueError as `export_run` and
    `merge_adapter` do.
    """
    adapter = None
    if config.adapter.kind != "none":
        adapter = AdapterSpec(
            config.adapter,
            base_path=str(spec.shape.name_or_path),
            base_revision=config.model.revision,
            fingerprint=fingerprint if config.model.quantize is None else None,  # 4 bits cannot be compared
        )
    written = str(export_run(folder, config, checkpoint, spec, adapter))
    if config.adapter.merge:
        shutil.rmtree(folder / "merged", ignore_errors=True)
        merge_adapter(folder / "model", folder / "merged", spec.trust_remote_code)
        written += f", merged: {folder / 'merged'}"
    return written
