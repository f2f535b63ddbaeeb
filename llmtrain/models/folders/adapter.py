"""A peft adapter on disk: what a run trained -> a folder that peft and transformers load; folder and base -> a model.

The folder names its base and holds no weight of it. It is made from the tensors of a checkpoint, without the model
that was trained.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from llmtrain.models.adapters.lora import expected_warnings, lora_config
from llmtrain.models.adapters.quantized import dequantized, in_4_bits, keep_layout
from llmtrain.models.adapters.renamed import without_untrained
from llmtrain.models.adapters.targets import renamed_layers, saved_modules
from llmtrain.models.folders.bases import Base, find_base, origin_of
from llmtrain.models.folders.card import as_model_card
from llmtrain.models.folders.compatible import save_tokenizer_files
from llmtrain.models.folders.exported import write_whole
from llmtrain.models.folders.files import ADAPTER_BASE, ADAPTER_CONFIG, CARD, TRAINING, require_readable
from llmtrain.models.folders.generation import generation_config, read_generation
from llmtrain.models.folders.given import is_adapter
from llmtrain.models.folders.kind import LANGUAGE, ModelKind, kind_of_adapter, load_options
from llmtrain.models.folders.known_base import require_base
from llmtrain.models.folders.model import WRAPPER_PREFIX, ExportSpec, save_tokenizer
from llmtrain.models.folders.packed_weights import require_opener, unpacking
from llmtrain.models.folders.saved_dtype import saved_dtype
from llmtrain.models.folders.skeleton import no_progress_bar, skeleton
from llmtrain.models.text_part import num_embeddings, parameters_beside
from llmtrain.system.files import one_line
from llmtrain.system.memory import is_out_of_memory
from llmtrain.system.paths import local_path
from llmtrain.system.terminal import say
from llmtrain.system.typing import Report

PEFT_PREFIX = "base_model.model."
# What the trained rows of tokens are called here and in peft.
ROWS, PEFT_ROWS = re.compile(r"\.rows$"), ".token_adapter.trainable_tokens_delta.default"
ROW_IDS = ".row_ids"
MATRICES = ".lora_"
UNKNOWN_BASE = "unknown"


def export_adapter(folder: Path, weights: Mapping[str, Tensor], card: str, spec: ExportSpec) -> None:
    """Write what was trained and its buffers (by the names of a wrapper), with all that `export_model` writes.

    Whoever loads a reward adapter gives `num_labels=1` and the tokenizer's `pad_token_id`, which the base's own
    configuration does not say.
    """
    adapter, origin = spec.adapter, spec.origin
    assert adapter is not None and origin is not None, "an adapter is of a given model"
    named = {name.removeprefix(WRAPPER_PREFIX): tensor for name, tensor in weights.items()}
    row_ids = {name.removesuffix(ROW_IDS): named.pop(name).tolist() for name in list(named) if name.endswith(ROW_IDS)}
    model = skeleton(spec.shape, spec.kind, torch.float32, spec.trust_remote_code)
    model.name_or_path = origin.peft_path or UNKNOWN_BASE
    head = None if spec.kind.head is None else model.get_submodule(spec.kind.head)
    config = lora_config(model, adapter, head or model.get_output_embeddings())
    without_untrained(config, renamed_layers(model), named)
    config.task_type = spec.kind.task_type
    # A tied head has the embedding's rows, and peft ties them by itself.
    config.trainable_token_indices = {name: ids for name, ids in row_ids.items() if f"{name}.rows" in named} or None
    in_full = [*saved_modules(model, adapter.modules_to_save), *([spec.kind.head] if spec.kind.head else [])]
    with expected_warnings():
        adapted = get_peft_model(model, config, revision=origin.revision, low_cpu_mem_usage=True)
    named = {_saved_name(name, in_full): tensor for name, tensor in named.items()}
    renamed = {f"{PEFT_PREFIX}{ROWS.sub(PEFT_ROWS, name)}": tensor.float() for name, tensor in named.items()}
    _, unexpected = adapted.load_state_dict(renamed, strict=False, assign=True)
    left_out = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad and parameter.is_meta]
    assert not left_out and not unexpected, (left_out, unexpected)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    if spec.kind.generates:
        generation_config(spec.generation, spec.tokenizer, spec.stop_ids).save_pretrained(folder)
    save_tokenizer(folder, spec)
    _forget_unknown_base(folder / ADAPTER_CONFIG)
    base = {**spec.base, "origin": origin.to_dict()}
    (folder / ADAPTER_BASE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def _saved_name(name: str, in_full: Sequence[str]) -> str:
    """peft's name of a tensor of a module that is trained in full, any other name as it is."""
    whole = next((each for each in in_full if name.startswith(f"{each}.")), None)
    return name if whole is None else f"{whole}.modules_to_save.default{name.removeprefix(whole)}"


def _forget_unknown_base(path: Path) -> None:
    """Name no base in `adapter_config.json` where none is known that peft could open."""
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if tree["base_model_name_or_path"] == UNKNOWN_BASE:
        path.write_text(json.dumps(tree | {"base_model_name_or_path": None}, indent=2) + "\n", encoding="utf-8")


def merge_adapter(
    adapter_folder: Path,
    out_folder: Path,
    trust_remote_code: bool = False,
    *,
    dtype: torch.dtype | None = None,
    base: str | None = None,
) -> torch.dtype:
    """Write the base with an adapter added in as the folder of a model, merged in fp32; the dtype it is saved in.

    `dtype`: of the saved weights; None: that of the base as it is saved. `base`: where its base is; None: as the
    adapter's folder tells. Raises ValueError for a folder without an adapter, a base that is not there or not the
    adapter's, and an `out_folder` that is in use.
    """
    if not is_adapter(adapter_folder):
        raise ValueError(f"{adapter_folder} is not an adapter: it has no {ADAPTER_CONFIG}")
    if out_folder.exists():
        raise ValueError(f"{out_folder} exists already: choose another folder, or remove that one")
    require_readable(adapter_folder)
    tokenizer = AutoTokenizer.from_pretrained(adapter_folder)
    adapted = open_adapter(
        adapter_folder, tokenizer, trust_remote_code, base=base, dtype=torch.float32, keeps_4_bits=False
    )
    found = find_base(adapter_folder, base)
    stored = saved_dtype(found.path, found.revision, trust_remote_code)
    dtype = dtype or stored
    kind, merged = adapter_kind(adapter_folder), _merged(adapted, adapter_folder)
    _cast(merged, dtype, stored, kind)
    partial = out_folder.with_name(f"{out_folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_whole(merged, partial, trust_remote_code, origin_of(found.path, found.revision))
    save_tokenizer_files(tokenizer, partial)
    if (adapter_folder / TRAINING).is_file():  # it says who trained it
        shutil.copy(adapter_folder / TRAINING, partial)
    card = adapter_folder / CARD
    if card.is_file():
        (partial / CARD).write_text(as_model_card(card.read_text(encoding="utf-8"), kind), encoding="utf-8")
    partial.rename(out_folder)
    return dtype


def _cast(merged: PreTrainedModel, dtype: torch.dtype, stored: torch.dtype, kind: ModelKind) -> None:
    """Cast a merged model to a type; what is beside the text model and its head to the type that it was stored in."""
    head = [] if kind.head is None else list(merged.get_submodule(kind.head).parameters())
    of_head = {id(parameter) for parameter in head}
    beside = [(each, each.data.to(stored)) for each in parameters_beside(merged) if id(each) not in of_head]
    merged.to(dtype)  # type: ignore[arg-type]
    for parameter, values in beside:
        parameter.data = values


def adapter_kind(adapter_folder: Path) -> ModelKind:
    """Whether an adapter makes its base a language model or a reward model. Raises ValueError as `_settings` does."""
    return kind_of_adapter(_settings(adapter_folder).task_type)


def _settings(adapter_folder: Path) -> PeftConfig:
    """peft's settings of an adapter. Raises ValueError for those that peft cannot read."""
    try:
        return PeftConfig.from_pretrained(str(adapter_folder))
    except (KeyError, TypeError, ValueError) as error:
        place = adapter_folder / ADAPTER_CONFIG
        raise ValueError(f"{place} is not an adapter's of peft ({type(error).__name__}: {one_line(error)})") from None


def open_adapter(
    adapter_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    trust_remote_code: bool = False,
    *,
    base: str | None = None,
    keeps_4_bits: bool = True,
    report: Report = say,
    **loading: Any,
) -> PeftModel:
    """An adapter on its base, which gets rows for the tokenizer's tokens if it has fewer.

    `base`: where that is; None: as the adapter's folder tells. `keeps_4_bits`: whether a base in 4 bits stays so; what
    is added into one would be rounded to them. `report`: gets a line on what could not be compared of the base.
    `loading`: further arguments of transformers, such as `dtype`. Raises ValueError if the base is not there, or is not
    the one that the adapter was trained on.
    """
    config, found = _settings(adapter_folder), find_base(adapter_folder, base)
    kind = kind_of_adapter(config.task_type)
    options = load_options(kind, tokenizer)
    model = _open_base(adapter_folder, found, kind, trust_remote_code, report, **options, **loading)
    doubt = require_base(adapter_folder, found.path, config, model)
    if doubt is not None:
        report(doubt)
    if not keeps_4_bits and in_4_bits(model):
        model = dequantized(model)
    if len(tokenizer) > num_embeddings(model):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weights = adapter_weights(adapter_folder)
    try:
        with expected_warnings():
            adapted: PeftModel = PeftModel.from_pretrained(model, str(adapter_folder), config=config)
    except (RuntimeError, ValueError, TypeError, SafetensorError) as error:  # other shapes, settings, or targets
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{adapter_folder} does not fit its base {found.path}: {one_line(error)}") from None
    _require_all_loaded(adapter_folder, weights, adapted)
    return adapted


def adapter_weights(adapter_folder: Path) -> dict[str, Tensor]:
    """The weights in an adapter's folder, by peft's names. Raises ValueError if there are none, or they are torn."""
    if not any((adapter_folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise ValueError(f"{adapter_folder}: it has no {SAFETENSORS_WEIGHTS_NAME}: copy the adapter's folder again")
    try:
        weights: dict[str, Tensor] = load_peft_weights(str(adapter_folder), device="cpu")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{adapter_folder}: its weights cannot be read ({one_line(error)})") from None
    return weights


def _require_all_loaded(adapter_folder: Path, weights: Iterable[str], adapted: PeftModel) -> None:
    """Raise ValueError for matrices in the folder that the model has no place for, or places without one.

    peft leaves out the first without a word: those of layers that `adapter_config.json` does not name.
    """
    saved = {name for name in weights if MATRICES in name}
    taken = {name for name in get_peft_model_state_dict(adapted, save_embedding_layers=False) if MATRICES in name}
    if unlike := sorted(saved ^ taken):
        what = "holds weights for" if unlike[0] in saved else "lacks weights for"
        raise ValueError(
            f"{adapter_folder}: it {what} {unlike[0].removeprefix(PEFT_PREFIX)}, unlike what {ADAPTER_CONFIG} says "
            "(target_modules, layers_to_transform): copy the adapter's folder again"
        )


def _open_base(
    adapter_folder: Path, found: Base, kind: ModelKind, trust_remote_code: bool, report: Report, **loading: Any
) -> PreTrainedModel:
    """The base of an adapter, which may be another adapter's model. Raises ValueError if it cannot be loaded."""
    if is_adapter(found.path):
        inner = local_path(found.path)
        if adapter_kind(inner) is not LANGUAGE or kind is not LANGUAGE:
            raise ValueError(
                f"{adapter_folder}: its base is the adapter {inner}, and one of the two scores: merge it first"
            )
        return open_merged(inner, trust_remote_code, report=report, **loading)
    try:
        shape = loading.get("config") or AutoConfig.from_pretrained(
            found.path, revision=found.revision, trust_remote_code=trust_remote_code
        )
        require_opener(shape, found.path)
        dtype = kind.dtype or saved_dtype(found.path, found.revision, trust_remote_code)
        options = {"dtype": dtype, "revision": found.revision} | loading
        with no_progress_bar(), _quiet(kind):
            if not kind.generates:
                shape.num_labels, shape.get_text_config().pad_token_id = 1, options["pad_token_id"]
            model: PreTrainedModel = kind.auto_class(shape).from_pretrained(
                found.path, trust_remote_code=trust_remote_code, **unpacking(shape) | options
            )
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"{adapter_folder}: its base {found.path} cannot be loaded: {one_line(error)}") from None
    keep_layout(model)
    return model


def adapter_tokenizer(adapter_folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of an adapter's folder, to be read only: one that is large takes seconds, and is kept."""
    changed = [path.stat().st_mtime_ns for path in sorted(adapter_folder.glob("*token*.json"))]
    return _kept_tokenizer(str(adapter_folder), tuple(changed))


@lru_cache(maxsize=1)
def _kept_tokenizer(folder: str, changed: tuple[int, ...]) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def open_merged(adapter_folder: Path, trust_remote_code: bool = False, **loading: Any) -> PreTrainedModel:
    """An adapter's model as a plain one, the adapter added into its base in memory; it generates as the adapter says.

    Raises ValueError as `open_adapter` does.
    """
    require_readable(adapter_folder)
    tokenizer = adapter_tokenizer(adapter_folder)
    adapted = open_adapter(adapter_folder, tokenizer, trust_remote_code, keeps_4_bits=False, **loading)
    return _merged(adapted, adapter_folder).requires_grad_(True)


def _merged(adapted: PeftModel, adapter_folder: Path) -> PreTrainedModel:
    """The base with its adapter added in, which generates as the adapter's folder says."""
    with expected_warnings():
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    if (generation := read_generation(adapter_folder)) is not None:
        merged.generation_config = generation
    return merged


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
