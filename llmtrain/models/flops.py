"""The arithmetic that training a model needs, in FLOPs (PaLM, Chowdhery et al. 2022, appendix B)."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llmtrain.models.adapters.quantized import num_weights


def attention_flops_per_token(shape: PreTrainedConfig, context: float) -> float:
    """Forward and backward FLOPs of causal attention for one token, 12 * layers * width * context / 2.

    `context` is the mean length of a segment in tokens; each token sees half of its segment on average
    (PaLM, appendix B, counts all of it).
    """
    width = _field(shape, "num_attention_heads") * head_dim(shape)
    return 12 * _field(shape, "num_hidden_layers") * width * context / 2


def flops_per_token(model: PreTrainedModel, context: float, trained_share: float = 1.0) -> float:
    """FLOPs that training on one token needs: 6 per weight that multiplies it, plus attention (PaLM, appendix B).

    A frozen weight has no gradient, and counts 4: forward, and backward to its input. An embedding is a
    look-up and counts nothing, unless its weight is also the output head's, which runs at the `trained_share` of the
    tokens.
    """
    head = model.get_output_embeddings()
    multiplying = [module for module in model.modules() if not isinstance(module, nn.Embedding)]
    weights = {id(weight): weight for module in multiplying for weight in module.parameters(recurse=False)}
    flops = attention_flops_per_token(model.config, context)
    for weight in weights.values():
        share = trained_share if head is not None and weight is head.weight else 1.0
        flops += share * (6 if weight.requires_grad else 4) * num_weights(weight)
    return flops


def head_dim(shape: PreTrainedConfig) -> int:
    """Width of one attention head."""
    explicit = shape.to_dict().get("head_dim")
    return explicit or _field(shape, "hidden_size") // _field(shape, "num_attention_heads")


def _field(shape: PreTrainedConfig, name: str) -> int:
    return int(getattr(shape, name))  # through the architecture's attribute_map
