"""Attention that never crosses a document's bound, for packs of documents end to end.

Documents that begin alike may share their beginning: a *prefix*, which is in the pack once, before what each document
continues with. A prefix is a segment like any other; the segments after it see all of it, and themselves, but not each
other. A pair with the prompt `2+2?` and the answers `4` and `five` is packed as `2+2?` `4` `five`.

Registered with `transformers` under the name ATTENTION, so any model that goes through its attention
interface uses it. The bounds come down the model's forward as the keyword `segments`, which also holds
where activations are recomputed in backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from llmtrain.system.device import ROWS, AttentionKernel

ATTENTION = "llmtrain"


class Run(NamedTuple):
    """Neighbouring segments of equal length, which run as one batch."""

    num_segments: int
    length: int  # tokens of each
    prefix: int | None = None  # number of the run, of one segment, that these continue


@dataclass(frozen=True)
class Segments:
    """Where the segments of one packed sequence lie, in the form that the chosen kernel needs."""

    runs: tuple[Run, ...]
    max_length: int
    cu_seqlens: Int32[Tensor, " segments+1"] | None = None  # for varlen
    mask: Bool[Tensor, "tokens tokens"] | None = None  # for mask; True if a query sees a key
    positions: Int64[Tensor, " tokens"] | None = None  # for mask; of each token in its document


def plan_segments(
    lengths: Sequence[int], kernel: AttentionKernel, device: torch.device, prefix_lengths: Sequence[int] = ()
) -> Segments:
    """Prepare the bounds of a microbatch once, for all layers.

    `prefix_lengths`: each prefix comes before its equal share of the segments; 0 for no prefix. Shared
    prefixes are not for varlen, see `sharing_obstacle`.
    """
    runs = _runs(lengths, prefix_lengths)
    cu_seqlens = mask = positions = None
    if kernel == "varlen":
        assert not any(prefix_lengths), "asked before"
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        cu_seqlens = bounds.to(device, non_blocking=True)
    elif kernel == "mask":
        mask, positions = _mask(runs, device)
    return Segments(runs, max(lengths), cu_seqlens, mask, positions)


def attention_dropout(shape: PreTrainedConfig) -> float:
    """The dropout that a model's attention applies in training; 0 if its configuration names none."""
    values = shape.to_dict()
    return max(values.get(name) or 0.0 for name in ("attention_dropout", "attn_pdrop"))


def sharing_obstacle(kernel: AttentionKernel) -> str | None:
    """Why documents cannot share a prefix under this kernel; None: they can."""
    if kernel in ROWS:
        return "documents run as rows"
    return "attention runs as varlen, which has no shared prompts yet" if kernel == "varlen" else None


def _runs(lengths: Sequence[int], prefix_lengths: Sequence[int]) -> tuple[Run, ...]:
    if not any(prefix_lengths):
        return tuple(Run(len(list(group)), length) for length, group in groupby(lengths))
    runs: list[Run] = []
    num_after = len(lengths) // len(prefix_lengths)
    for number, prefix_length in enumerate(prefix_lengths):
        prefix = len(runs) if prefix_length else None
        runs += [Run(1, prefix_length)] if prefix_length else []
        after = lengths[number * num_after : (number + 1) * num_after]
        runs += [Run(len(list(group)), length, prefix) for length, group in groupby(after)]
    return tuple(runs)


def _mask(runs: Sequence[Run], device: torch.device) -> tuple[Bool[Tensor, "tokens tokens"], Int64[Tensor, " tokens"]]:
    """Which key a query sees, and each token's position in its document."""
    segments: list[tuple[int, int, int]] = []  # (length, number of the prefix that it continues, that one's length)
    firsts: list[int] = []  # number of the first segment of each run
    for run in runs:
        firsts.append(len(segments))
        before = (-1, 0) if run.prefix is None else (firsts[run.prefix], runs[run.prefix].length)
        segments += [(run.length, *before)] * run.num_segments
    lengths, prefixes, starts = (torch.tensor(column) for column in zip(*segments, strict=True))
    owner = torch.repeat_interleave(torch.arange(len(segments)), lengths)
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()]) + starts[owner]
    owner, prefix, positions = (tensor.to(device) for tensor in (owner, prefixes[owner], positions))
    return (owner[:, None] == owner[None, :]).tril() | (prefix[:, None] == owner[None, :]), positions


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
    s_aux: Float[Tensor, " heads"] | None = None,
    segments: Segments | None = None,
    **unused: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_dim"], None]:
    """Causal attention within each segment and its prefix; the signature is that of `transformers`' interface.

    `sliding_window` counts the query's own token; `s_aux` are sinks, a logit per head that takes attention from all
    tokens (gpt-oss). Raises ValueError for a model that does not hand `segments` down, or whose attention has parts
    that this one does not know (biases).
    """
    if segments is None or attention_mask is not None:
        raise ValueError(f"{type(module).__name__} does not pass document bounds to its attention: not supported")
    if foreign := [name for name in ("position_bias", "alibi") if unused.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} uses {foreign[0]} in its attention: not supported")
    form = _Form(scaling, dropout, sliding_window, softcap, s_aux)
    if segments.mask is not None:
        assert segments.positions is not None
        mask = segments.mask
        if sliding_window is not None:
            mask = mask & (segments.positions[:, None] - segments.positions[None, :] < sliding_window)
        return _masked(query, key, value, mask, form).transpose(1, 2), None
    if segments.cu_seqlens is not None and softcap is None and s_aux is None:
        assert dropout == 0.0, "refused at start-up"
        return _varlen(query, key, value, segments, form), None
    return _by_runs(query, key, value, segments, form), None


class _Form(NamedTuple):
    """What a model's attention does besides softmax(q k) v; the fields are those of `transformers`' interface."""

    scaling: float | None
    dropout: float
    sliding_window: int | None
    softcap: float | None
    sinks: Float[Tensor, " heads"] | None


def _by_runs(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, form: _Form
) -> Float[Tensor, "1 tokens heads value_dim"]:
    window = form.sliding_window
    outputs = []
    sizes = [run.num_segments * run.length for run in segments.runs]
    # One split, whose backward is one concatenation; a slice's backward would fill the whole length for each run.
    parts = list(zip(*(tensor[0].split(sizes, dim=1) for tensor in (query, key, value)), strict=True))
    for (count, length, prefix), part in zip(segments.runs, parts, strict=True):
        q, k, v = (tensor.unflatten(1, (count, length)).transpose(0, 1) for tensor in part)  # (count, heads, length, _)
        num_before = 0
        if prefix is not None:
            num_before = segments.runs[prefix].length
            k, v = (
                torch.cat([before.expand(count, -1, -1, -1), own], dim=2)
                for before, own in zip(parts[prefix][1:], (k, v), strict=True)
            )
        mask = None
        is_plain = form.softcap is None and form.sinks is None
        if num_before or not is_plain or (window is not None and length > window):
            seen = torch.ones(length, num_before + length, dtype=torch.bool, device=query.device).tril(num_before)
            mask = seen if window is None else seen.triu(num_before + 1 - window)
        if mask is None:
            output = scaled_dot_product_attention(
                q, k, v, dropout_p=form.dropout, is_causal=True, scale=form.scaling, enable_gqa=True
            )
        else:
            output = _masked(q, k, v, mask, form)
        outputs.append(output.transpose(1, 2).flatten(0, 1))  # (tokens, heads, value_dim)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, form: _Form
) -> Float[Tensor, "1 tokens heads value_dim"]:
    from torch.nn.attention.varlen import varlen_attn  # newer than the oldest torch we support

    assert segments.cu_seqlens is not None
    # Under autocast rotary embeddings leave queries and keys in fp32, and this kernel is not on autocast's list.
    q, k, v = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))  # (tokens, heads, head_dim)
    window = (form.sliding_window - 1 if form.sliding_window is not None else -1, 0)
    output = varlen_attn(
        q,
        k,
        v,
        segments.cu_seqlens,
        segments.cu_seqlens,
        segments.max_length,
        segments.max_length,
        scale=form.scaling,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output.unsqueeze(0)


def _masked(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    mask: Bool[Tensor, "tokens keys"],
    form: _Form,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    scaling, dropout, _, softcap, sinks = form
    if sinks is not None:
        assert softcap is None, "no architecture has both"
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
        key, value, bias = with_sinks(key, value, bias.expand(1, len(sinks), -1, -1), sinks[None, :, None])
        return scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
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


def with_sinks(
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    bias: Float[Tensor, "#batch heads queries keys"],
    sinks: Float[Tensor, "#batch heads #queries"],
) -> tuple[Tensor, Tensor, Tensor]:
    """One more key, whose scores are the sinks, with a value of zero: it takes attention and gives nothing."""
    more = sinks.to(bias.dtype).expand(bias.shape[:-1])[..., None]
    return nn.functional.pad(key, (0, 0, 0, 1)), nn.functional.pad(value, (0, 0, 0, 1)), torch.cat([bias, more], -1)


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """`transformers` builds no mask for this attention: the bounds come as `segments`."""


def compile_model(model: PreTrainedModel) -> None:
    """Compile the decoder's layers in place, attention left out: it is another graph for each batch's segments."""
    AttentionInterface.register(ATTENTION, torch.compiler.disable(segment_attention))
    model.base_model.compile()


AttentionInterface.register(ATTENTION, segment_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
