"""One token per row through a model of Llama's shape, without what `transformers` does around each product.

A decoding step multiplies a handful of rows by every weight. The operations between the products are small, and each
call costs more than its arithmetic: of 94 ms that a step of SmolLM2-135M took (8 rows, 2 cores), the products took 50.
The layers (adapted, packed) and the weights of norms and embeddings are the model's own; only the operations between
them are written in a shorter way, which bypasses hooks of a whole layer. Models of any other shape take
`transformers`' forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

from llmtrain.models.cpu.layers import is_swiglu
from llmtrain.rollout.local.cache import RowCache, cached_attention
from llmtrain.rollout.local.cpu_linear import Layers, StepLinears, in_fp32_on_cpu

FAMILIES: dict[type, tuple[type, type]] = {
    LlamaForCausalLM: (LlamaModel, LlamaDecoderLayer),
    MistralForCausalLM: (MistralModel, MistralDecoderLayer),
    Qwen2ForCausalLM: (Qwen2Model, Qwen2DecoderLayer),
    Qwen3ForCausalLM: (Qwen3Model, Qwen3DecoderLayer),
}
"""Pre-norm, rotary embeddings, SwiGLU; some have biases, or norms of queries and keys.

A class that derives from one of these may compute something else, so it is not of this shape.
"""


class Decoder:
    """The short forward of a model; `can_decode` says which models have one."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._embed, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        trunk: Any = model.base_model
        self._rotary, self._norm = trunk.rotary_emb, _Norm(trunk.norm)
        self._layers = [_Layer(layer) for layer in trunk.layers]

    @property
    def together(self) -> list[Layers]:
        """Layers that read the same input."""
        return [layers for layer in self._layers for layers in (layer.qkv, layer.gate_up)]

    def logits(
        self, token_ids: Int[Tensor, " rows"], positions: Int[Tensor, " rows"], cache: RowCache, linears: StepLinears
    ) -> Float[Tensor, "rows vocab"]:
        """The logits after each row's token, at `positions`, which `cache.place` has been given."""
        embedded = self._embed(token_ids[:, None])  # (rows, 1, hidden)
        cos, sin = self._rotary(embedded, positions[:, None])  # (rows, 1, head_dim)
        half = sin.shape[-1] // 2
        turn = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        hidden = embedded[:, 0]
        for number, layer in enumerate(self._layers):
            projected = linears.outputs(layer.qkv, layer.first_norm(hidden))
            attended = _attention(layer.attention, projected, layer.head_norms, cos, turn, cache, number)
            hidden = hidden + linears.outputs(layer.o, attended)[0]
            gate, up = linears.outputs(layer.gate_up, layer.second_norm(hidden))
            hidden = hidden + linears.outputs(layer.down, silu(gate).mul_(up))[0]
        logits: Tensor = self._head(self._norm(hidden))
        return logits


class _Norm:
    """An RMSNorm in as few operations as possible, with the weight that it has now."""

    def __init__(self, module: Any) -> None:
        width = module.weight.numel()
        self._weight = module.weight.detach() * math.sqrt(width)
        self._eps = torch.tensor(module.variance_epsilon * width)

    def __call__(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.addcmul(self._eps, norm, norm).rsqrt_()).mul_(self._weight)


class _Layer:
    """A decoder layer's parts."""

    def __init__(self, layer: Any) -> None:
        self.attention, mlp = layer.self_attn, layer.mlp
        self.qkv: Layers = (self.attention.q_proj, self.attention.k_proj, self.attention.v_proj)
        self.o: Layers = (self.attention.o_proj,)
        self.gate_up: Layers = (mlp.gate_proj, mlp.up_proj)
        self.down: Layers = (mlp.down_proj,)
        self.first_norm, self.second_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.head_norms: tuple[_Norm, _Norm] | None = None
        if isinstance(self.attention, Qwen3Attention):
            self.head_norms = _Norm(self.attention.q_norm), _Norm(self.attention.k_norm)


def can_decode(model: PreTrainedModel) -> bool:
    """Whether a model has Llama's shape, without windows, and is in fp32 on a CPU, where this was measured."""
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
    projected: Sequence[Float[Tensor, "rows _"]],
    head_norms: tuple[_Norm, _Norm] | None,
    cos: Float[Tensor, "rows 1 head_dim"],
    turn: Float[Tensor, "rows 1 head_dim"],
    cache: RowCache,
    layer: int,
) -> Float[Tensor, "rows hidden"]:
    """The attention output of one layer; writes the token's key and value into the cache."""
    query, key, value = (part.unflatten(1, (-1, attention.head_dim)) for part in projected)  # (rows, heads, head_dim)
    if head_norms is not None:
        query, key = head_norms[0](query), head_norms[1](key)
    query, key = _rotated(torch.cat([query, key], dim=1), cos, turn).split([query.shape[1], key.shape[1]], dim=1)
    keys, values = cache.update(key[:, :, None], value[:, :, None], layer)
    output, _ = cached_attention(
        attention, query[:, :, None], keys, values, None, scaling=attention.scaling, cached=cache
    )
    return output.flatten(1)


def _rotated(
    x: Float[Tensor, "rows heads head_dim"],
    cos: Float[Tensor, "rows 1 head_dim"],
    turn: Float[Tensor, "rows 1 head_dim"],
) -> Float[Tensor, "rows heads head_dim"]:
    """Rotary embedding (Su et al. 2021) of halves; `turn` is the sine, negative in the first half."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), turn)
