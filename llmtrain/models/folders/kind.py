"""The kinds of model that a folder can hold: language models, and reward models with a scalar head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from llmtrain.models.folders.classes import language_class, reward_class, scores_here_only
from llmtrain.models.heads.score import SCORE


@dataclass(frozen=True)
class ModelKind:
    """What differs between the folders of two kinds of model; all else is shared."""

    auto_class: Callable[[PreTrainedConfig], Any]  # the loader of a folder's model, by its configuration
    task_type: str  # peft's word for it
    pipeline: str  # the hub's word for it
    noun: str
    head: str | None  # the head that an adapter's run trains in full and saves beside the adapter
    generates: bool  # False: its tokenizer pads for scoring, and it has no generation config
    dtype: torch.dtype | None  # of a base that is opened; None: the one that it is stored in
    code: str  # loads a model, for its card
    adapter_code: str  # loads an adapter on its base


LANGUAGE = ModelKind(
    auto_class=language_class,
    task_type="CAUSAL_LM",
    pipeline="text-generation",
    noun="causal language model",
    head=None,
    generates=True,
    dtype=None,
    code="""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")""",
    adapter_code="""\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")""",
)

SCORING = """
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()  # up to the end of the last answer
score = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0]"""

REWARD = ModelKind(
    auto_class=reward_class,
    task_type="SEQ_CLS",
    pipeline="text-classification",
    noun="reward model",
    head=SCORE,
    generates=False,
    dtype=torch.float32,
    code=f"""\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH"){SCORING}""",
    adapter_code=f"""\
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoPeftModelForSequenceClassification.from_pretrained(
    "PATH", num_labels=1, pad_token_id=tokenizer.pad_token_id
){SCORING}""",
)


SCORED_HERE = """\
from pathlib import Path

from llmtrain.models.folders.reward import open_classifier

found = open_classifier(Path("PATH"))  # transformers has no class for a reward model of this family
model, tokenizer = found.model, found.tokenizer"""


def as_described(kind: ModelKind, shape: PreTrainedConfig) -> ModelKind:
    """A kind with the code that loads a folder of this configuration."""
    if not kind.generates:
        code = f"{SCORED_HERE}{SCORING}"
        return replace(kind, code=code, adapter_code=code) if scores_here_only(shape) else kind
    plain, own = "AutoModelForCausalLM", language_class(shape).__name__
    if own == plain:
        return kind
    base = f"model = {own}.from_pretrained(config.base_model_name_or_path)"
    adapter_code = f"""\
from peft import PeftConfig, PeftModel
from transformers import {own}, AutoTokenizer

config = PeftConfig.from_pretrained("PATH")
{base}
model = PeftModel.from_pretrained(model, "PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")"""
    return replace(kind, code=kind.code.replace(plain, own), adapter_code=adapter_code)


def kind_of_adapter(task_type: str | None) -> ModelKind:
    """The kind that an adapter's `task_type` names; a language model's if it names none of ours."""
    return REWARD if task_type == REWARD.task_type else LANGUAGE


def load_options(kind: ModelKind, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the loader must be given beyond a base's own configuration."""
    return {} if kind.generates else {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
