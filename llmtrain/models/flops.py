"""The arithmetic that training a model needs, in FLOPs (PaLM, Chowdhery et al. 2022, appendix B)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llmtrain.models.adapters.quantized import num_weights
from llmtrain.models.text_part import parts_beside, text_field, text_modules
from llmtrain.protocols import Counts


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of forward and backward, by what they grow with."""

    per_token: float  # of the weights that every token is multiplied by
    per_trained_token: float  # of the output head, which runs where there is a label
    per_attended_token: float  # of attention

    def of_step(self, totals: Counts) -> float:
        """FLOPs of a step, by its `input_tokens`, its trained `tokens` and `batch.attended_tokens`."""
        return (
            self.per_token * totals["input_tokens"]
            + self.per_trained_token * totals["tokens"]
            + self.per_attended_token * totals["attended_tokens"]
        )


def training_flops(model: PreTrainedModel) -> TrainingFlops:
    """6 per weight that multiplies a token, plus attention: 12 * layers * width per token that a token attends to.

    PaLM, appendix B, has a token attend to all of its sequence; here it attends to what is before it, and to itself. A
    frozen weight has no gradient, and counts 4: forward, and backward to its input. An embedding is a look-up and
    counts nothing, unless its weight is also the output head's.
    """
    head = model.get_output_embeddings()
    parts = [module for part in text_modules(model) for module in part.modules()]
    beside = {module for part in parts_beside(model).values() for module in part.modules()}
    multiplying = [module for module in parts if not isinstance(module, nn.Embedding) and module not in beside]
    weights = {id(weight): weight for module in multiplying for weight in module.parameters(recurse=False)}
    flops = {
        identity: float((6 if weight.requires_grad else 4) * num_weights(weight))
        for identity, weight in weights.items()
    }
    of_head = 0.0 if head is None else flops.pop(id(head.weight))
    text = model.config.get_text_config()
    num_heads = text_field(model.config, "num_attention_heads", 0) or 0  # a model of states alone has none
    width = num_heads * head_dim(text) if num_heads else 0
    return TrainingFlops(
        per_token=sum(flops.values()),
        per_trained_token=of_head,
        per_attended_token=12.0 * _field(text, "num_hidden_layers") * width,
    )


def head_dim(shape: PreTrainedConfig) -> int:
    """Width of one attention head."""
    explicit = shape.to_dict().get("head_dim")
    return explicit or _field(shape, "hidden_size") // _field(shape, "num_attention_heads")


def _field(shape: PreTrainedConfig, name: str) -> int:
    return int(getattr(shape, name))  # through the architecture's attribute_map
