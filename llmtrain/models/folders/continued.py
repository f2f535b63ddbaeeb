"""The adapter that a run trains: a new one, or that of a folder, which goes on being trained on its own base."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftType
from torch import Tensor
from transformers import PreTrainedModel

from llmtrain.config.adapter import OF_ITS_FOLDER, AdapterConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.adapters.targets import has_ending
from llmtrain.models.folders.adapter import PEFT_PREFIX, ROWS, adapter_weights
from llmtrain.models.folders.known_base import token_ids

MATRIX = re.compile(r"\.(lora_[AB])\.weight$")
MAGNITUDE = re.compile(r"\.lora_magnitude_vector(\.weight)?$")
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
NOT_HERE = (
    "alpha_pattern",
    "alora_invocation_tokens",
    "exclude_modules",
    "layer_replication",
    "layers_pattern",
    "lora_bias",
    "rank_pattern",
    "use_bdlora",
    "use_qalora",
)
"""Settings of peft that an adapter trained here cannot have."""


@dataclass(frozen=True)
class AdapterPlan:
    """The adapter that each trained model of a run gets."""

    config: AdapterConfig
    new_token_ids: tuple[int, ...]  # whose rows are trained too
    seed: int
    start: Path | None = None  # the folder of the adapter that goes on; None: a new one, drawn from `seed`

    def put_into(self, model: PreTrainedModel) -> None:
        """Freeze a model and put the adapter into it. Raises ValueError for one that does not fit the model."""
        add_adapter(model, self.config, self.new_token_ids, self.seed)
        if self.start is not None:
            _load_weights(model, self.start)


def continued(plan: AdapterPlan, folder: Path) -> AdapterPlan:
    """The plan of an adapter that goes on: its own settings, the rest as configured.

    Raises ValueError for settings that are not its own, and for an adapter of a kind that is not trained here.
    """
    theirs = PeftConfig.from_pretrained(str(folder))
    settings: dict[str, Any] = theirs.to_dict()
    place = f"adapter.continue: {folder}"
    if theirs.peft_type != PeftType.LORA:
        raise ValueError(f"{place} is of the kind {theirs.peft_type}, which is not trained here: merge it first")
    foreign = [name for name in NOT_HERE if settings.get(name)]
    if foreign or settings["bias"] != "none":
        name = foreign[0] if foreign else "bias"
        raise ValueError(f"{place} has {name}={settings[name]}, which is not trained here: merge it first")
    config, targets = plan.config, theirs.target_modules
    found = AdapterConfig.model_validate(
        {
            **config.model_dump(),
            "kind": "dora" if settings["use_dora"] else "lora",
            "rank": settings["r"],
            "alpha": settings["lora_alpha"],
            "rslora": settings["use_rslora"],
            "target": targets if isinstance(targets, str) else sorted(targets or []),
            "target_parameters": sorted(settings["target_parameters"] or []),
            "layers": settings["layers_to_transform"],
            "modules_to_save": settings["modules_to_save"] or [],
        }
    )
    for name in ("kind", *OF_ITS_FOLDER):
        given, own = getattr(config, name), getattr(found, name)
        if _means(config, name) != _means(found, name) and (
            name == "kind" or given != type(config).model_fields[name].default
        ):
            has = "all layers" if name == "layers" and own is None else own
            raise ValueError(f"adapter.{name}={given}: {folder} has {has}, which it keeps: give that or leave it out")
    rows = {id_ for ids in token_ids(settings).values() for id_ in ids}
    return replace(plan, config=found, new_token_ids=tuple(sorted(rows | set(plan.new_token_ids))), start=folder)


def _means(config: AdapterConfig, name: str) -> Any:
    """A setting by what it says: names in any order, layers however they are written."""
    value = config.chosen_layers() if name == "layers" else getattr(config, name)
    return sorted(value) if isinstance(value, list) else value


@torch.no_grad()
def _load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Set a model's adapter to the weights in a folder. Raises ValueError if they do not fit."""
    saved = adapter_weights(folder)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    buffers, ids_by_name = dict(model.named_buffers()), token_ids(PeftConfig.from_pretrained(str(folder)).to_dict())
    loaded: set[str] = set()
    for key, tensor in saved.items():
        name = key.removeprefix(PEFT_PREFIX)
        if name.endswith(TOKEN_ROWS):
            module = name.removesuffix(TOKEN_ROWS)
            name, ids = f"{module}.rows", _ids_of(module, ids_by_name)
            _put_rows(trained.get(name), tensor, _places(buffers.get(f"{module}.row_ids"), ids), f"{folder}: {key}")
        else:
            name = MAGNITUDE.sub(".lora_magnitude_vector.default.weight", MATRIX.sub(r".\1.default.weight", name))
            parameter = trained.get(name)
            if parameter is None or parameter.shape != tensor.shape:
                raise ValueError(f"{folder}: {key} does not fit its base")
            parameter.copy_(tensor)
        loaded.add(name)
    # Rows that it has not are of tokens added since, which start as they were made.
    if missing := sorted(name for name in set(trained) - loaded if not ROWS.search(name)):
        raise ValueError(f"{folder}: it has no weights for {missing[0]}")


def _ids_of(module: str, by_name: Mapping[str, Sequence[int]]) -> Sequence[int]:
    """The tokens whose rows of a module an adapter has; peft takes a name for every module that ends so."""
    return next((ids for name, ids in by_name.items() if has_ending(module, name)), ())


def _places(row_ids: Tensor | None, ids: Sequence[int]) -> list[int]:
    known = [] if row_ids is None else row_ids.tolist()
    return [known.index(id_) for id_ in ids if id_ in known]


def _put_rows(rows: torch.nn.Parameter | None, tensor: Tensor, places: Sequence[int], where: str) -> None:
    if rows is None or len(places) != len(tensor) or rows.shape[1:] != tensor.shape[1:]:
        raise ValueError(f"{where} does not fit its base")
    rows[list(places)] = tensor.to(rows)
