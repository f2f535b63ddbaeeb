"""A peft adapter on disk: what a run trained -> a folder that peft and transformers load; folder and base -> a model.

The folder names its base and holds no weight of it. It is made from the tensors of a checkpoint, without the model
that was trained.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from llmtrain.config.sections import AdapterConfig
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.lora import expected_warnings, lora_config
from llmtrain.models.folders.card import as_model_card
from llmtrain.models.folders.files import ADAPTER_BASE, ADAPTER_CONFIG, CARD, GENERATION_CONFIG, require_readable
from llmtrain.models.folders.kind import ModelKind, kind_of_adapter, load_options
from llmtrain.models.folders.model import (
    WRAPPER_PREFIX,
    ExportSpec,
    generation_config,
    no_progress_bar,
    save_tokenizer,
    skeleton,
)
from llmtrain.system.files import one_line

PEFT_PREFIX = "base_model.model."
# What the trained rows of tokens are called here and in peft.
ROWS, PEFT_ROWS = re.compile(r"\.rows$"), ".token_adapter.trainable_tokens_delta.default"
ROW_IDS = ".row_ids"


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter and the base that it was trained on."""

    config: AdapterConfig
    base_path: str
    base_revision: str | None = None
    base: Mapping[str, Any] = field(default_factory=dict)  # facts, compared when the adapter is opened; those there are


def export_adapter(
    folder: Path, weights: Mapping[str, Tensor], card: str, spec: ExportSpec, adapter: AdapterSpec
) -> None:
    """Write what was trained and its buffers (by the names of a wrapper), with all that `export_model` writes.

    Whoever loads a reward adapter gives `num_labels=1` and the tokenizer's `pad_token_id`, which the base's own
    configuration does not say.
    """
    named = {name.removeprefix(WRAPPER_PREFIX): tensor for name, tensor in weights.items()}
    row_ids = {name.removesuffix(ROW_IDS): named.pop(name).tolist() for name in list(named) if name.endswith(ROW_IDS)}
    model = skeleton(spec.shape, spec.kind, torch.float32, spec.trust_remote_code)
    is_folder = Path(adapter.base_path).is_dir()
    model.name_or_path = str(Path(adapter.base_path).resolve()) if is_folder else adapter.base_path
    head = None if spec.kind.head is None else model.get_submodule(spec.kind.head)
    config = lora_config(model, adapter.config, head or model.get_output_embeddings())
    config.task_type = spec.kind.task_type
    # A tied head has the embedding's rows, and peft ties them by itself.
    config.trainable_token_indices = {name: ids for name, ids in row_ids.items() if f"{name}.rows" in named} or None
    with expected_warnings():
        adapted = get_peft_model(model, config, revision=adapter.base_revision, low_cpu_mem_usage=True)
    if spec.kind.head is not None:
        named[f"{spec.kind.head}.modules_to_save.default.weight"] = named.pop(f"{spec.kind.head}.weight")
    renamed = {f"{PEFT_PREFIX}{ROWS.sub(PEFT_ROWS, name)}": tensor.float() for name, tensor in named.items()}
    _, unexpected = adapted.load_state_dict(renamed, strict=False, assign=True)
    left_out = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad and parameter.is_meta]
    assert not left_out and not unexpected, (left_out, unexpected)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    if spec.kind.generates:
        generation_config(spec).save_pretrained(folder)
    save_tokenizer(folder, spec)
    (folder / ADAPTER_BASE).write_text(json.dumps(dict(adapter.base), indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def merge_adapter(adapter_folder: Path, out_folder: Path, trust_remote_code: bool = False) -> None:
    """Write the base with an adapter added in as the folder of a model, merged in fp32.

    It is saved in the dtype that a base of its kind is opened in. Raises ValueError for a folder without an adapter, a
    base that is not there or not the adapter's, and an `out_folder` that is in use.
    """
    if not (adapter_folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{adapter_folder} is not an adapter: it has no {ADAPTER_CONFIG}")
    if out_folder.exists():
        raise ValueError(f"{out_folder} exists already: choose another folder, or remove that one")
    require_readable(adapter_folder)
    tokenizer = AutoTokenizer.from_pretrained(adapter_folder)
    adapted = open_adapter(adapter_folder, tokenizer, trust_remote_code)
    dtype = adapted.get_base_model().dtype
    adapted.float()
    merged = adapted.merge_and_unload(safe_merge=True).to(dtype)
    if (adapter_folder / GENERATION_CONFIG).is_file():
        merged.generation_config = GenerationConfig.from_pretrained(adapter_folder)
    partial = out_folder.with_name(f"{out_folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with no_progress_bar():
        merged.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    card = adapter_folder / CARD
    if card.is_file():
        kind = adapter_kind(adapter_folder)
        (partial / CARD).write_text(as_model_card(card.read_text(encoding="utf-8"), kind), encoding="utf-8")
    partial.rename(out_folder)


def adapter_kind(adapter_folder: Path) -> ModelKind:
    """Whether an adapter makes its base a language model or a reward model."""
    return kind_of_adapter(PeftConfig.from_pretrained(str(adapter_folder)).task_type)


def open_adapter(
    adapter_folder: Path, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False
) -> PeftModel:
    """An adapter on its base, which gets rows for the tokenizer's tokens if it has fewer.

    Raises ValueError if the base is not there, or is not the one that the adapter was trained on.
    """
    config = PeftConfig.from_pretrained(str(adapter_folder))
    base = _base(adapter_folder, config, tokenizer, trust_remote_code)
    _check_base(adapter_folder, config, base)
    if len(tokenizer) > base.config.vocab_size:
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    try:
        with expected_warnings():
            adapted: PeftModel = PeftModel.from_pretrained(base, str(adapter_folder))
    except (RuntimeError, ValueError, SafetensorError) as error:  # shapes that differ, or targets that are not there
        base_path = config.base_model_name_or_path
        raise ValueError(f"{adapter_folder} does not fit its base {base_path}: {one_line(error)}") from None
    return adapted


def _base(
    adapter_folder: Path, config: PeftConfig, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool
) -> PreTrainedModel:
    """The base that an adapter names."""
    path, kind = str(config.base_model_name_or_path), kind_of_adapter(config.task_type)
    try:
        with no_progress_bar(), _quiet(kind):
            model: PreTrainedModel = kind.auto_class.from_pretrained(
                path,
                revision=config.revision,
                trust_remote_code=trust_remote_code,
                dtype=kind.dtype,
                **load_options(kind, tokenizer),
            )
    except (OSError, ValueError) as error:
        raise ValueError(f"{adapter_folder}: its base {path} cannot be loaded: {one_line(error)}") from None
    return model


def _check_base(adapter_folder: Path, config: PeftConfig, base: PreTrainedModel) -> None:
    """Raise ValueError if the base is not the one that the adapter was trained on, as far as that was recorded."""
    if not (adapter_folder / ADAPTER_BASE).is_file():
        return  # an adapter from elsewhere
    trained_on = json.loads((adapter_folder / ADAPTER_BASE).read_text(encoding="utf-8"))
    if "fingerprint" in trained_on:
        raise ValueError(
            f"{adapter_folder / ADAPTER_BASE} was written by a version of llmtrain that did not record the base's "
            "configuration: train again, or remove the file if you are sure of the base"
        )
    rows = config.to_dict()["trainable_token_indices"] or {}
    first_new = min((min(ids) for ids in rows.values()), default=None)
    found = base_facts(base, first_new)
    for name, fact in trained_on.items():
        if fact != found[name]:
            what = name if name == "weights" else _differing(fact, found[name])
            raise ValueError(
                f"{adapter_folder} was trained on another base than {config.base_model_name_or_path} is now ({what} "
                f"differ): name the right one in {ADAPTER_CONFIG}"
            )


def _differing(trained_on: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The fields of two configurations that differ, with their values."""
    names = [name for name in {**trained_on, **found} if trained_on.get(name) != found.get(name)]
    return ", ".join(f"configuration: {name} {trained_on.get(name)!r} then, {found.get(name)!r} now" for name in names)


@contextmanager
def _quiet(kind: ModelKind) -> Iterator[None]:
    """Leave out transformers' report that a base lacks the head that its adapter brings."""
    verbosity = logging.get_verbosity()
    if kind.head is not None:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
