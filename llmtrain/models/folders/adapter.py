"""A peft adapter on disk: what a run trained -> a folder that peft and transformers load; folder and base -> a model.

The folder names its base and holds no weight of it. It is made from the tensors of a checkpoint, without the model
that was trained.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmtrain.config.sections import AdapterConfig
from llmtrain.models.adapters.lora import base_fingerprint, expected_warnings, lora_config
from llmtrain.models.folders.card import as_model_card
from llmtrain.models.folders.model import WRAPPER_PREFIX, generation_config, no_progress_bar, save_tokenizer, skeleton

BASE_FILE = "base.json"  # the base's fingerprint, by which a merge knows it again
PEFT_PREFIX = "base_model.model."
# How the trained rows of tokens are called here and in peft.
ROWS, PEFT_ROWS = re.compile(r"\.rows$"), ".token_adapter.trainable_tokens_delta.default"
ROW_IDS = ".row_ids"


def export_adapter(
    folder: Path,
    shape: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    adapter: AdapterConfig,
    base_path: str,
    base_revision: str | None = None,
    fingerprint: str | None = None,
    card: str,
    stop_ids: tuple[int, ...] = (),
    trust_remote_code: bool = False,
) -> None:
    """Write what was trained and its buffers (by the names of CausalLMLoss), with all that `export_model` writes.

    `shape` is that of the model in training, with the rows of new tokens. `fingerprint` is the base's, which a merge
    compares; None where it was in 4 bits, which cannot be compared.
    """
    named = {name.removeprefix(WRAPPER_PREFIX): tensor for name, tensor in weights.items()}
    row_ids = {name.removesuffix(ROW_IDS): named.pop(name).tolist() for name in list(named) if name.endswith(ROW_IDS)}
    model = skeleton(shape, torch.float32, trust_remote_code)
    model.name_or_path = str(Path(base_path).resolve()) if Path(base_path).is_dir() else base_path
    config = lora_config(model, adapter)
    # A tied head has the embedding's rows, and peft ties them by itself.
    config.trainable_token_indices = {name: ids for name, ids in row_ids.items() if f"{name}.rows" in named} or None
    with expected_warnings():
        adapted = get_peft_model(model, config, revision=base_revision, low_cpu_mem_usage=True)
    renamed = {f"{PEFT_PREFIX}{ROWS.sub(PEFT_ROWS, name)}": tensor.float() for name, tensor in named.items()}
    _, unexpected = adapted.load_state_dict(renamed, strict=False, assign=True)
    left_out = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad and parameter.is_meta]
    assert not left_out and not unexpected, (left_out, unexpected)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    generation_config(tokenizer, stop_ids).save_pretrained(folder)
    save_tokenizer(folder, tokenizer, shape)
    (folder / BASE_FILE).write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def merge_adapter(adapter_folder: Path, out_folder: Path, trust_remote_code: bool = False) -> None:
    """Write the base with an adapter added in as the folder of a model, merged in fp32, saved in the base's dtype.

    Raises ValueError for a folder that is no adapter, a base that is not there or not the adapter's, and an
    `out_folder` that is in use.
    """
    if not (adapter_folder / "adapter_config.json").is_file():
        raise ValueError(f"{adapter_folder} is no adapter: it has no adapter_config.json")
    if out_folder.exists():
        raise ValueError(f"{out_folder} exists already: choose another folder, or remove that one")
    tokenizer = AutoTokenizer.from_pretrained(adapter_folder)
    adapted = open_adapter(adapter_folder, len(tokenizer), trust_remote_code)
    dtype = adapted.get_base_model().dtype
    adapted.float()
    merged = adapted.merge_and_unload(safe_merge=True).to(dtype)
    merged.generation_config = GenerationConfig.from_pretrained(adapter_folder)
    partial = out_folder.with_name(f"{out_folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with no_progress_bar():
        merged.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    card = adapter_folder / "README.md"
    if card.is_file():
        (partial / "README.md").write_text(as_model_card(card.read_text(encoding="utf-8")), encoding="utf-8")
    partial.rename(out_folder)


def open_adapter(adapter_folder: Path, num_tokens: int, trust_remote_code: bool = False) -> PeftModel:
    """An adapter on its base, which gets rows for `num_tokens` tokens where it has fewer.

    Raises ValueError where the base is not there, or not the one that the adapter was trained on.
    """
    config = PeftConfig.from_pretrained(str(adapter_folder))
    base = _base(adapter_folder, config, trust_remote_code)
    _check_base(adapter_folder, config, base)
    if num_tokens > base.config.vocab_size:
        base.resize_token_embeddings(num_tokens, mean_resizing=False)
    try:
        with expected_warnings():
            adapted: PeftModel = PeftModel.from_pretrained(base, str(adapter_folder))
    except (RuntimeError, ValueError, SafetensorError) as error:  # shapes that differ, or targets that are not there
        reason = " ".join(str(error).split())
        raise ValueError(f"{adapter_folder} does not fit its base {config.base_model_name_or_path}: {reason}") from None
    return adapted


def _base(adapter_folder: Path, config: PeftConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The base that an adapter names, in the dtype that it is stored in."""
    path = str(config.base_model_name_or_path)
    try:
        with no_progress_bar():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path, revision=config.revision, trust_remote_code=trust_remote_code, dtype="auto"
            )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{adapter_folder}: its base {path} cannot be loaded: {reason}") from None
    return model


def _check_base(adapter_folder: Path, config: PeftConfig, base: PreTrainedModel) -> None:
    """Raise ValueError where the base is not the one that the adapter was trained on, as far as that was recorded."""
    if not (adapter_folder / BASE_FILE).is_file():
        return  # an adapter from elsewhere
    trained_on = json.loads((adapter_folder / BASE_FILE).read_text(encoding="utf-8"))["fingerprint"]
    rows = config.to_dict()["trainable_token_indices"] or {}
    first_new = min((min(ids) for ids in rows.values()), default=None)
    found = base_fingerprint(base, first_new)
    if trained_on is not None and found != trained_on:
        raise ValueError(
            f"{adapter_folder} was trained on another base than {config.base_model_name_or_path} is now (fingerprint "
            f"{trained_on}, not {found}): name the right one in adapter_config.json"
        )
