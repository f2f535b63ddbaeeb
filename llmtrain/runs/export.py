"""The end of a run that tunes a causal language model: its checkpoint as an adapter's folder, or the whole model's."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from llmtrain.config.recipes import TuningConfig
from llmtrain.models.folders.adapter import export_adapter, merge_adapter
from llmtrain.models.folders.gguf import resolved_path
from llmtrain.models.folders.model import WRAPPER_PREFIX, export_model
from llmtrain.runs.folder import Write, export_dtype, export_run
from llmtrain.train.checkpoint import Checkpoint


def export_tuned(
    folder: Path,
    config: TuningConfig,
    checkpoint: Checkpoint,
    *,
    shape: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: tuple[int, ...],
    fingerprint: str | None,
) -> str:
    """Write `model/`, without a critic, and `merged/` where the run asks for it; what was written, for the log.

    `fingerprint` is the base's, which a merge compares. Raises ValueError as `export_run` and `merge_adapter` do.
    """
    has_adapter, trust = config.adapter.kind != "none", config.model.trust_remote_code
    write: Write
    if has_adapter:
        write = partial(
            export_adapter,
            adapter=config.adapter,
            base_path=resolved_path(config.model.path),
            base_revision=config.model.revision,
            fingerprint=fingerprint if config.model.quantize is None else None,
        )
    else:
        write = partial(export_model, dtype=export_dtype(config.train))
    write = partial(write, shape=shape, tokenizer=tokenizer, stop_ids=stop_ids, trust_remote_code=trust)
    adapter_of = config.model.path if has_adapter else None
    written = str(export_run(folder, config, checkpoint, write, adapter_of, WRAPPER_PREFIX))
    if config.adapter.merge:
        shutil.rmtree(folder / "merged", ignore_errors=True)
        merge_adapter(folder / "model", folder / "merged", trust)
        written += f", merged: {folder / 'merged'}"
    return written
