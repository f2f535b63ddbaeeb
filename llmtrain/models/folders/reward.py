"""A trained reward model on disk: a folder that `transformers` loads for sequence classification, or peft's adapter.

The counterpart of `export.py` and `adapter_folder.py` for models with a scalar head. Padding in the folder is a
token that never ends an answer, so that a batch is scored at the tokens that were trained.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel, TaskType, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from llmtrain.config.sections import AdapterConfig
from llmtrain.models.adapters.lora import expected_warnings, lora_config
from llmtrain.models.attention import ATTENTION
from llmtrain.models.folders.adapter import BASE_FILE, PEFT_PREFIX, PEFT_ROWS, ROW_IDS, ROWS
from llmtrain.models.folders.card import MODEL_CODE
from llmtrain.models.folders.model import WRAPPER_PREFIX, no_progress_bar, save_tokenizer, skeleton
from llmtrain.models.wrappers.reward_model import HEAD, RewardModel

CARD = "reward_card.json"  # of the run, beside the folder of the model
REWARD_CODE = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()  # up to the end of the last answer
score = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0]"""
ADAPTER_REWARD_CODE = """\
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoPeftModelForSequenceClassification.from_pretrained(
    "PATH", num_labels=1, pad_token_id=tokenizer.pad_token_id
)
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()  # up to the end of the last answer
score = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0]"""


def beats_chance(card: Mapping[str, Any]) -> bool:
    """Whether a reward model ranks held-out pairs better than a coin does, the whole confidence interval above 1/2."""
    return card["accuracy_low"] is not None and card["accuracy_low"] > 0.5


def export_reward_model(
    folder: Path,
    shape: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype,
    card: str,
    trust_remote_code: bool = False,
) -> None:
    """Write weights (by the names of RewardModel), tokenizer and model card; the weights are checked to be complete."""
    model = _skeleton(shape, dtype, trust_remote_code)
    named = {
        name.removeprefix(WRAPPER_PREFIX): tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    missing, unexpected = model.load_state_dict(named, strict=False, assign=True)
    left_out = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left_out and not unexpected, (left_out, missing, unexpected)
    with no_progress_bar():
        model.save_pretrained(folder)
    _save_rest(folder, tokenizer, shape, _reward_card(card, REWARD_CODE))


def export_reward_adapter(
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
    trust_remote_code: bool = False,
) -> None:
    """Write the adapter and the head (by the names of RewardModel) as peft's for sequence classification.

    `shape` is that of the model in training. Whoever loads the folder gives `num_labels=1` and the tokenizer's
    `pad_token_id`, which the base's own configuration does not say. `fingerprint` is the base's; None where it was
    in 4 bits.
    """
    named = {name.removeprefix(WRAPPER_PREFIX): tensor for name, tensor in weights.items()}
    row_ids = {name.removesuffix(ROW_IDS): named.pop(name).tolist() for name in list(named) if name.endswith(ROW_IDS)}
    config = lora_config(skeleton(shape, torch.float32, trust_remote_code), adapter)
    config.task_type = TaskType.SEQ_CLS
    config.trainable_token_indices = row_ids or None
    model = _skeleton(shape, torch.float32, trust_remote_code)
    model.name_or_path = str(Path(base_path).resolve()) if Path(base_path).is_dir() else base_path
    with expected_warnings():
        adapted = get_peft_model(model, config, revision=base_revision, low_cpu_mem_usage=True)
    named[f"{HEAD}.modules_to_save.default.weight"] = named.pop(f"{HEAD}.weight")
    renamed = {f"{PEFT_PREFIX}{ROWS.sub(PEFT_ROWS, name)}": tensor.float() for name, tensor in named.items()}
    _, unexpected = adapted.load_state_dict(renamed, strict=False, assign=True)
    left_out = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad and parameter.is_meta]
    assert not left_out and not unexpected, (left_out, unexpected)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / BASE_FILE).write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
    _save_rest(folder, tokenizer, shape, _reward_card(card, ADAPTER_REWARD_CODE))


def merge_reward_adapter(adapter_folder: Path, out_folder: Path, trust_remote_code: bool = False) -> None:
    """Write the base with a reward adapter added in, as a folder that needs no peft, in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(adapter_folder)
    merged = _adapted(adapter_folder, tokenizer, trust_remote_code).merge_and_unload(safe_merge=True)
    partial = out_folder.with_name(f"{out_folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with no_progress_bar():
        merged.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    card = (adapter_folder / "README.md").read_text(encoding="utf-8")
    (partial / "README.md").write_text(card.replace(ADAPTER_REWARD_CODE, REWARD_CODE, 1), encoding="utf-8")
    shutil.rmtree(out_folder, ignore_errors=True)
    partial.rename(out_folder)


def load_reward_model(folder: Path) -> tuple[RewardModel, PreTrainedTokenizerFast]:
    """A finished reward model, frozen, in fp32 on the CPU, an adapter on its base included; and its tokenizer.

    Raises ValueError for a folder that holds none.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if (folder / "adapter_config.json").is_file():
            model: Any = _adapted(folder, tokenizer, trust_remote_code=False).get_base_model()
        else:
            with no_progress_bar():
                model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: no reward model can be loaded ({' '.join(str(error).split())})") from None
    if model.config.num_labels != 1:
        raise ValueError(f"{folder}: a classifier with {model.config.num_labels} labels is no reward model")
    model.set_attn_implementation(ATTENTION)
    return RewardModel(model.requires_grad_(False), "segments").eval(), tokenizer


def _adapted(folder: Path, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool) -> PeftModel:
    """A reward adapter on its base, in fp32."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the base has no head of its own is no news
    with expected_warnings(), no_progress_bar():
        adapted = AutoPeftModelForSequenceClassification.from_pretrained(
            str(folder),
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
        )
    logging.set_verbosity(verbosity)
    return adapted


def _skeleton(shape: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """A model without weights, on the meta device, as it is to be loaded by others."""
    shape = copy.deepcopy(shape)
    shape.use_cache = True
    vars(shape).pop("quantization_config", None)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            shape, attn_implementation="eager", dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model


def _save_rest(folder: Path, tokenizer: PreTrainedTokenizerBase, shape: PreTrainedConfig, card: str) -> None:
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(shape.pad_token_id)
    save_tokenizer(folder, tokenizer, shape)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _reward_card(card: str, code: str) -> str:
    """The card of a language model as that of a reward model, without the details that `reward_card.json` has."""
    card = re.sub(r"^\| \w+/.*\n", "", card, flags=re.MULTILINE)
    card = card.replace("pipeline_tag: text-generation", "pipeline_tag: text-classification", 1)
    return card.replace("A causal language model", "A reward model", 1).replace(MODEL_CODE, code, 1)
