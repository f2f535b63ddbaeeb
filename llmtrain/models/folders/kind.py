"""The kinds of model that a folder can hold: language models, and reward models with a scalar head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from llmtrain.models.heads.score import SCORE


@dataclass(frozen=True)
class ModelKind:
    """What differs between the folders of two kinds of model; all else is shared."""

    auto_class: Any  # transformers' loader
    task_type: str  # peft's word for it
    pipeline: str  # the hub's word for it
    noun: str
    head: str | None  # the head that an adapter's run trains in full and saves beside the adapter
    generates: bool  # False: its tokenizer pads for scoring, and it has no generation config
    dtype: torch.dtype | None  # of a base that is opened; None: the one that it is stored in
    code: str  # loads a model, for its card
    adapter_code: str  # loads an adapter on its base


LANGUAGE = ModelKind(
    auto_class=AutoModelForCausalLM,
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
    auto_class=AutoModelForSequenceClassification,
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


def kind_of_adapter(task_type: str | None) -> ModelKind:
    """The kind that an adapter's `task_type` names; a language model's if it names none of ours."""
    return REWARD if task_type == REWARD.task_type else LANGUAGE


def load_options(kind: ModelKind, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the loader must be given beyond a base's own configuration."""
    return {} if kind.generates else {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
