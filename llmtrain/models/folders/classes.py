"""Which class loads the model of a folder: that of `transformers`, or one made here for what it has no class for.

Language models: one of images and text, or of text alone, as the folder was saved. Reward models: `transformers`' class
for sequence classification; for a family without one, the same parts put together here (its trunk, and `transformers`'
generic head on the last token), made known to `AutoModelForSequenceClassification` in this process. A folder of such a
model loads wherever llmtrain is; its weights have the names that the class of a later version would give them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

MADE_HERE: set[type[PreTrainedConfig]] = set()
"""The configurations whose class for sequence classification was made here."""


class LastTokenScore(GenericForSequenceClassification):
    """`transformers`' generic head, for trunks of every kind of output."""

    config: PreTrainedConfig
    base_model: nn.Module

    def forward(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """The scores of each row at its last token that is not padding, as `logits`: (batch, num_labels)."""
        masks = {} if attention_mask is None else {"attention_mask": attention_mask}
        outputs = self.base_model(input_ids=input_ids, **masks, **inputs)
        padding = self.config.get_text_config().pad_token_id
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (
            (places * (input_ids != padding)).argmax(-1) if padding is not None else places[-1].expand(len(input_ids))
        )
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return SequenceClassifierOutput(logits=self.score(outputs.last_hidden_state[rows, last]))


def language_class(shape: PreTrainedConfig) -> Any:
    """The class of transformers that loads a language model as what it is: one of images and text, or of text alone.

    Some configurations have both, and `architectures` says which it was saved as.
    """
    if type(shape) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        names = {cls.__name__ for cls in _classes(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, shape)}
        if type(shape) not in MODEL_FOR_CAUSAL_LM_MAPPING or names & set(shape.architectures or ()):
            return AutoModelForImageTextToText
    return AutoModelForCausalLM


def reward_class(shape: PreTrainedConfig) -> Any:
    """The class that loads a reward model, one made here included. Raises ValueError for what is no language model."""
    if scores_here_only(shape) and type(shape) not in MADE_HERE:
        made = _scoring_class(shape)
        AutoModelForSequenceClassification.register(type(shape), made, exist_ok=True)
        MADE_HERE.add(type(shape))
    return AutoModelForSequenceClassification


def scores_here_only(shape: PreTrainedConfig) -> bool:
    """Whether transformers itself has no class for a reward model of this family."""
    return type(shape) in MADE_HERE or type(shape) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def _scoring_class(shape: PreTrainedConfig) -> type[PreTrainedModel]:
    mapping = (
        MODEL_FOR_CAUSAL_LM_MAPPING
        if language_class(shape) is AutoModelForCausalLM
        else MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    )
    if type(shape) not in mapping:
        raise ValueError(f"{shape.model_type} is no language model of transformers itself: it gets no score")
    named = [cls for cls in _classes(mapping, shape) if cls.__name__ in (shape.architectures or ())]
    language: type[PreTrainedModel] = (named or _classes(mapping, shape))[0]
    family = next(cls for cls in language.__mro__[1:] if issubclass(cls, PreTrainedModel) and "For" not in cls.__name__)
    name = f"{language.__name__.partition('For')[0]}ForSequenceClassification"
    fields = {
        "config_class": type(shape),
        "base_model_prefix": language.base_model_prefix,
        "__module__": language.__module__,  # by whose source transformers knows what its experts can do
        "__doc__": f"The trunk of {language.__name__} with a score of the last token.",
    }
    made: type[PreTrainedModel] = type(name, (LastTokenScore, family), fields)
    return made


def _classes(mapping: Any, shape: PreTrainedConfig) -> tuple[Any, ...]:
    found = mapping[type(shape)]
    return found if isinstance(found, tuple) else (found,)
