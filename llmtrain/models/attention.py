"""Attention that never crosses a document's bound, for packs of documents laid end to end.

Registered with `transformers` under the name ATTENTION, so any model that goes through its attention
interface uses it. The bounds come down the model's forward as the keyword `segments`, which also holds
where activations are recomputed in backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from llmtrain.device import AttentionKernel

ATTENTION = "llmtrain"


@dataclass(frozen=True)
class Segments:
    """Where the segments of one packed sequence lie, in the form that the chosen kernel needs."""

    runs: tuple[tuple[int, int], ...]  # (segments, tokens of each): neighbours of equal length run as one batch
    max_length: int
    cu_seqlens: Int32[Tensor, " segments+1"] | None = None  # for varlen
    mask: Bool[Tensor, "tokens tokens"] | None = None  # for mask; True where a query sees a key


def plan_segments(lengths: Sequence[int], kernel: AttentionKernel, device: torch.device) -> Segments:
    """Prepare the bounds of a microbatch once, for all layers."""
    runs = tuple((len(list(group)), length) for length, group in groupby(lengths))
    cu_seqlens = mask = None
    if kernel == "varlen":
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        cu_seqlens = bounds.to(device, non_blocking=True)
    elif kernel == "mask":
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
        mask = (owner[:, None] == owner[None, :]).tril()
    return Segments(runs, max(lengths), cu_seqlens, mask)


def segment_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens head_dim"],
    key: Float[Tensor, "1 kv_heads tokens head_dim"],
    value: Float[Tensor, "1 kv_heads tokens value_dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: Segments | None = None,
    **unused: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_dim"], None]:
    """Causal attention within each segment. The signature is that of `transformers`' attention interface.

    `sliding_window` counts the query's own token. Raises ValueError for a model that does not hand `segments`
    down, or whose attention has parts that this one does not know (sinks, biases).
    """
    if segments is None or attention_mask is not None:
        raise ValueError(f"{type(module).__name__} does not pass document bounds to its attention: not supported")
    if foreign := [name for name in ("s_aux", "position_bias", "alibi") if unused.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} uses {foreign[0]} in its attention: not supported")
    if segments.mask is not None:
        mask = _within_window(segments.mask, sliding_window)
        return _masked(query, key, value, mask, scaling, dropout, softcap).transpose(1, 2), None
    if segments.cu_seqlens is not None and softcap is None:
        assert dropout == 0.0, "refused at start-up"
        return _varlen(query, key, value, segments, scaling, sliding_window), None
    return _by_runs(query, key, value, segments, scaling, dropout, sliding_window, softcap), None


def _by_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Float[Tensor, "1 tokens heads value_dim"]:
    outputs = []
    sizes = [count * length for count, length in segments.runs]
    # One split, whose backward is one concatenation; a slice's backward would fill the whole length for each run.
    parts = zip(*(tensor[0].split(sizes, dim=1) for tensor in (query, key, value)), strict=True)
    for (count, length), run in zip(segments.runs, parts, strict=True):
        q, k, v = (part.unflatten(1, (count, length)).transpose(0, 1) for part in run)  # (segments, heads, tokens, _)
        mask = None
        if softcap is not None or (sliding_window is not None and length > sliding_window):
            causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
            mask = _within_window(causal, sliding_window)
        if mask is None:
            output = scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
            )
        else:
            output = _masked(q, k, v, mask, scaling, dropout, softcap)
        outputs.append(output.transpose(1, 2).flatten(0, 1))  # (tokens, heads, value_dim)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, sliding_window: int | None
) -> Float[Tensor, "1 tokens heads value_dim"]:
    from torch.nn.attention.varlen import varlen_attn  # newer than the oldest torch we support

    assert segments.cu_seqlens is not None
    # Under autocast rotary embeddings leave queries and keys in fp32, and this kernel is not on autocast's list.
    q, k, v = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))  # (tokens, heads, head_dim)
    window = (sliding_window - 1 if sliding_window is not None else -1, 0)
    output = varlen_attn(
        q,
        k,
        v,
        segments.cu_seqlens,
        segments.cu_seqlens,
        segments.max_length,
        segments.max_length,
        scale=scaling,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output.unsqueeze(0)


def _masked(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch kv_heads tokens head_dim"],
    value: Float[Tensor, "batch kv_heads tokens value_dim"],
    mask: Bool[Tensor, "tokens tokens"],
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    if softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * scale / softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.dropout(weights, dropout, dropout > 0.0) @ value


def _within_window(mask: Bool[Tensor, "q k"], sliding_window: int | None) -> Bool[Tensor, "q k"]:
    return mask if sliding_window is None else mask.triu(1 - sliding_window)


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """`transformers` builds no mask for this attention: the bounds come as `segments`."""


def compile_model(model: PreTrainedModel) -> None:
    """Compile the decoder's layers in place, attention left out: it is another graph for each batch's segments."""
    AttentionInterface.register(ATTENTION, torch.compiler.disable(segment_attention))
    model.base_model.compile()


AttentionInterface.register(ATTENTION, segment_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
