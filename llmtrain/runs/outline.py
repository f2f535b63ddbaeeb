"""What a model's folder is made from, besides the weights of a checkpoint: kept in the run's folder from its start.

    runs/NAME/outline/  config.json  tokenizer.json ...  outline.json

So any checkpoint of a run exports, also of one that was killed, and without the base that it started from.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from llmtrain.config.recipes import RecipeConfig, TuningConfig
from llmtrain.models.folders.adapter import AdapterSpec
from llmtrain.models.folders.kind import LANGUAGE, REWARD
from llmtrain.models.folders.model import ExportSpec
from llmtrain.runs.facts import Facts
from llmtrain.runs.folder import read_json
from llmtrain.system.files import FREE_RUN, full_disk_named, one_line, write_json

FOLDER = "outline"
REST = "outline.json"  # what the files of a model's folder do not say
KINDS = {kind.noun: kind for kind in (LANGUAGE, REWARD)}


@dataclass(frozen=True)
class Outline:
    """What is exported, besides the weights."""

    spec: ExportSpec
    adapter: AdapterSpec | None = None  # None: the whole model was trained


def outline_of(config: RecipeConfig, spec: ExportSpec, facts: Facts) -> Outline:
    """The outline of a run's exports; its adapter, if it trains one, names the base of the run's facts."""
    if not isinstance(config, TuningConfig) or config.adapter.kind == "none":
        return Outline(spec)
    base = facts.base
    if config.model.quantize is not None:  # weights in 4 bits cannot be compared with others
        base = {name: fact for name, fact in base.items() if name != "weights"}
    return Outline(spec, AdapterSpec(config.adapter, str(spec.shape.name_or_path), config.model.revision, base))


def save_outline(run: Path, outline: Outline) -> None:
    """Write it into a run's folder, unless it is there: facts do not change. Raises ValueError if the disk is full."""
    final, partial = run / FOLDER, run / f"{FOLDER}.partial"
    if final.is_dir():
        return
    spec, adapter = outline.spec, outline.adapter
    shutil.rmtree(partial, ignore_errors=True)
    with full_disk_named(partial, FREE_RUN):
        spec.shape.save_pretrained(partial)
        spec.tokenizer.save_pretrained(partial)
    rest = {
        "name_or_path": spec.shape.name_or_path,
        "kind": spec.kind.noun,
        "dtype": str(spec.dtype).removeprefix("torch."),
        "stop_ids": list(spec.stop_ids),
        "base": None if adapter is None else dict(adapter.base),
    }
    write_json(partial / REST, rest, FREE_RUN)
    partial.rename(final)


def load_outline(run: Path, config: RecipeConfig) -> Outline:
    """The outline that a run of a configuration kept. Raises ValueError if there is none, or it cannot be read."""
    folder, trust = run / FOLDER, config.model.trust_remote_code
    fix = "start the run's command again, which writes it"
    rest = read_json(folder / REST, f"{fix} at once")
    try:
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        shape.name_or_path = rest["name_or_path"]
        spec = ExportSpec(
            shape,
            tokenizer,
            KINDS[rest["kind"]],
            vars(torch)[rest["dtype"]],
            tuple(rest["stop_ids"]),
            trust,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} cannot be read ({one_line(error)}): remove it and {fix}") from None
    if rest["base"] is None:
        return Outline(spec)
    assert isinstance(config, TuningConfig)
    base_path, revision = rest["name_or_path"], config.model.revision
    return Outline(spec, AdapterSpec(config.adapter, base_path, revision, rest["base"]))
