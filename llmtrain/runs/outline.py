"""What a model's folder is made from, besides the weights of a checkpoint: kept in the run's folder from its start.

    runs/NAME/outline/  config.json  tokenizer.json ...  outline.json

So any checkpoint of a run exports, also of one that was killed, and without the base that it started from.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.recipes import RecipeConfig
from llmtrain.models.folders.kind import LANGUAGE, REWARD
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.folders.origin import Origin
from llmtrain.runs.folder import read_json
from llmtrain.system.files import FREE_RUN, full_disk_named, one_line, write_json

FOLDER = "outline"
REST = "outline.json"  # what the files of a model's folder do not say
KINDS = {kind.noun: kind for kind in (LANGUAGE, REWARD)}


def save_outline(run: Path, spec: ExportSpec) -> None:
    """Write it into a run's folder, unless it is there: facts do not change. Raises ValueError if the disk is full."""
    final, partial = run / FOLDER, run / f"{FOLDER}.partial"
    if final.is_dir():
        return
    shutil.rmtree(partial, ignore_errors=True)
    with full_disk_named(partial, FREE_RUN):
        spec.shape.save_pretrained(partial)
        spec.tokenizer.save_pretrained(partial)
    rest = {
        "name_or_path": spec.shape.name_or_path,
        "kind": spec.kind.noun,
        "dtype": str(spec.dtype).removeprefix("torch."),
        "stop_ids": list(spec.stop_ids),
        "generation": dict(spec.generation),
        "origin": None if spec.origin is None else spec.origin.to_dict(),
        "adapter": None if spec.adapter is None else spec.adapter.model_dump(),
        "base": None if spec.adapter is None else dict(spec.base),
    }
    write_json(partial / REST, rest, FREE_RUN)
    partial.rename(final)


def load_outline(run: Path, config: RecipeConfig) -> ExportSpec:
    """The outline that a run of a configuration kept. Raises ValueError if there is none, or it cannot be read."""
    folder, trust = run / FOLDER, config.model.trust_remote_code
    fix = "start the run's command again, which writes it"
    rest = read_json(folder / REST, f"{fix} at once")
    try:
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        shape.name_or_path = rest["name_or_path"]
        return ExportSpec(
            shape,
            tokenizer,
            KINDS[rest["kind"]],
            dtype=vars(torch)[rest["dtype"]],
            stop_ids=tuple(rest["stop_ids"]),
            trust_remote_code=trust,
            generation=rest["generation"],
            origin=None if rest["origin"] is None else Origin(**rest["origin"]),
            adapter=None if rest["adapter"] is None else AdapterConfig.model_validate(rest["adapter"]),
            base=rest["base"] or {},
        )
    except Exception as error:  # of a folder that is not right, libraries raise errors of any class
        raise ValueError(f"{folder} cannot be read ({one_line(error)}): remove it and {fix}") from None
