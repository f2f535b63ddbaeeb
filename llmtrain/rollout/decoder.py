"""One token a row through a model of Llama's shape, without what `transformers` does around each product.

A decoding step multiplies a handful of rows by every weight. What lies between the products is small, and there each
call costs more than its arithmetic: of 94 ms that a step of SmolLM2-135M took (8 rows, 2 cores), the products were 50.
The layers are the model's own, as they are found (adapted, packed), and so are norms' and embeddings' weights; only
what stands between them is written shorter, past any hook of a whole layer. Models of any other shape take
`transformers`' forward.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import silu
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralForCausalLM, MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3Model

from llmtrain.models.fused_layers import is_swiglu, rms_norm
from llmtrain.rollout.cache import RowCache, cached_attention
from llmtrain.rollout.step_linear import in_fp32_on_cpu

FAMILIES: dict[type, tuple[type, type]] = {
    LlamaForCausalLM: (LlamaModel, LlamaDecoderLayer),
    MistralForCausalLM: (MistralModel, MistralDecoderLayer),
    Qwen2ForCausalLM: (Qwen2Model, Qwen2DecoderLayer),
    Qwen3ForCausalLM: (Qwen3Model, Qwen3DecoderLayer),
}
"""Pre-norm, rotary embeddings, SwiGLU; biases, and norms of queries and keys, where they have them.

A class that derives from one of these may compute otherwise, and is another shape.
"""


class Decoder:
    """The short way through a model; `can_decode` says which models have one."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._embed, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        trunk: Any = model.base_model
        self._rotary, self._layers, self._norm = trunk.rotary_emb, list(trunk.layers), trunk.norm

    def logits(
        self, token_ids: Int[Tensor, " rows"], positions: Int[Tensor, " rows"], cache: RowCache
    ) -> Float[Tensor, "rows vocab"]:
        """The logits behind each row's token, which stands at `positions`, where `cache` has been placed."""
        embedded = self._embed(token_ids[:, None])  # (rows, 1, hidden)
        cos, sin = self._rotary(embedded, positions[:, None])  # (rows, 1, head_dim)
        half = sin.shape[-1] // 2
        turn = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        hidden = embedded[:, 0]
        for number, layer in enumerate(self._layers):
            attended = _attention(layer.self_attn, _norm(layer.input_layernorm, hidden), cos, turn, cache, number)
            hidden = hidden + attended
            mlp, x = layer.mlp, _norm(layer.post_attention_layernorm, hidden)
            hidden = hidden + mlp.down_proj(silu(mlp.gate_proj(x)).mul_(mlp.up_proj(x)))
        logits: Tensor = self._head(_norm(self._norm, hidden))
        return logits


def can_decode(model: PreTrainedModel) -> bool:
    """Whether a model has Llama's shape, without windows, and is in fp32 on a CPU, where this way was measured."""
    if type(model) not in FAMILIES or not in_fp32_on_cpu(model):
        return False
    trunk_type, layer_type = FAMILIES[type(model)]
    trunk: Any = model.base_model
    layers: list[Any] = list(trunk.layers)
    shape = model.config.to_dict()
    return (
        type(trunk) is trunk_type
        and {type(layer) for layer in layers} == {layer_type}
        and all(is_swiglu(layer.mlp) for layer in layers)
        and shape.get("sliding_window") is None
        and set(shape.get("layer_types") or ()) <= {"full_attention"}
    )


def _attention(
    attention: Any,
    x: Float[Tensor, "rows hidden"],
    cos: Float[Tensor, "rows 1 head_dim"],
    turn: Float[Tensor, "rows 1 head_dim"],
    cache: RowCache,
    layer: int,
) -> Float[Tensor, "rows hidden"]:
    """One layer's attention over the cache, which takes up the token's key and value."""
    width = attention.head_dim
    query, key, value = (
        project(x).unflatten(1, (-1, width)) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # (rows, heads, head_dim)
    if isinstance(attention, Qwen3Attention):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    query, key = _rotated(query, cos, turn), _rotated(key, cos, turn)
    keys, values = cache.update(key[:, :, None], value[:, :, None], layer)
    output, _ = cached_attention(
        attention, query[:, :, None], keys, values, None, scaling=attention.scaling, cached=cache
    )
    attended: Tensor = attention.o_proj(output.flatten(1))
    return attended


def _rotated(
    x: Float[Tensor, "rows heads head_dim"],
    cos: Float[Tensor, "rows 1 head_dim"],
    turn: Float[Tensor, "rows 1 head_dim"],
) -> Float[Tensor, "rows heads head_dim"]:
    """Rotary embedding (Su et al. 2021) of halves; `turn` is the sine, negative in the first half."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), turn)


def _norm(module: Any, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
    return rms_norm(x, module.weight, module.variance_epsilon)
