"""Keys and values of responses that grow side by side, each from column 0 of its own row.

A step writes one token per row, in place, at that row's own length, and attends to the tokens before it.
`transformers`' dynamic cache copies every key and value at each step, and its rows share one length; here a copy is
made only when rows join or leave. Columns after a row's end have a weight of exactly zero, so a row's numbers do not
depend on the lengths beside it: to the bit, if kernels add whole vectors of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache

from llmtrain.models.attention import segment_attention, with_sinks

CACHED_ATTENTION = "llmtrain_cached"

COLUMNS_MULTIPLE = 32  # CPU kernels add the columns left over after whole vectors in another order

LayerStates = Sequence[tuple[Tensor, Tensor]]
"""Keys and values, each (kv_heads, tokens, head_dim), of one prompt for each layer."""


class PackedStates(Cache):
    """Keys and values of one packed forward, as each layer made them: (1, kv_heads, tokens, head_dim)."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.layer_states: list[tuple[Tensor, Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep a layer's keys and values, and attend to only these."""
        assert layer_idx == len(self.layer_states)
        self.layer_states.append((key_states, value_states))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing is before a prompt."""
        return 0

    def span(self, start: int, end: int) -> LayerStates:
        """Of the prompt at tokens [start, end)."""
        return [(keys[0, :, start:end], values[0, :, start:end]) for keys, values in self.layer_states]


class RowCache(Cache):
    """The cache of rows of different lengths; `place` sets where the next step writes its tokens."""

    def __init__(self, keys: Sequence[Tensor] = (), values: Sequence[Tensor] = ()) -> None:
        """Buffers for each layer, (rows, kv_heads, columns, head_dim), that are written in place."""
        super().__init__(layers=[])
        self.keys, self.values = list(keys), list(values)
        self.visible = 0  # columns that are attended to, the longest row's and up to a multiple
        self._biases: dict[tuple[int | None, torch.dtype], Float[Tensor, "rows 1 1 columns"]] = {}

    @property
    def num_rows(self) -> int:
        """Rows of a step, empty ones included."""
        return self.keys[0].shape[0] if self.keys else 0

    @property
    def columns(self) -> int:
        """Tokens that each row has room for."""
        return self.keys[0].shape[2] if self.keys else 0

    def place(self, positions: Sequence[int], device: torch.device) -> None:
        """Set the column of each row that the next step writes its token to."""
        self.visible = whole_columns(max(positions) + 1)
        self._positions = torch.tensor(positions, device=device)
        self._rows = torch.arange(len(positions), device=device)
        self._biases = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token per row, (rows, kv_heads, 1, head_dim); returns the keys and values so far."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self._rows, :, self._positions] = key_states[:, :, 0]
        values[self._rows, :, self._positions] = value_states[:, :, 0]
        return keys[:, :, : self.visible], values[:, :, : self.visible]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in use. Positions are given to the model, since each row has its own."""
        return self.visible

    def bias(self, sliding_window: int | None, dtype: torch.dtype) -> Float[Tensor, "rows 1 1 columns"]:
        """The attention bias of each row: 0 for a column that its token sees, else minus infinity.

        `sliding_window` counts the token itself.
        """
        key = sliding_window, dtype
        if key not in self._biases:
            columns = torch.arange(self.visible, device=self._positions.device)
            hidden = columns > self._positions[:, None]
            if sliding_window is not None:
                hidden |= columns <= self._positions[:, None] - sliding_window
            bias = torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf"))
            self._biases[key] = bias[:, None, None]
        return self._biases[key]

    def rearranged(
        self, staying: Sequence[int], joining: Sequence[LayerStates], num_rows: int, columns: int
    ) -> RowCache:
        """A new cache: the rows `staying`, the prompts `joining`, empty rows up to `num_rows`; room for `columns`."""
        columns = whole_columns(columns)
        layers: list[list[Tensor]] = [[], []]
        for which, buffers in enumerate((self.keys, self.values)):
            for layer in range(len(buffers) or len(joining[0])):
                like = buffers[layer] if buffers else joining[0][layer][which][None]
                # Zeros, not empty memory: a weight of zero times NaN is NaN.
                buffer = like.new_zeros(num_rows, like.shape[1], columns, like.shape[3])
                if staying:
                    width = min(columns, like.shape[2])
                    buffer[: len(staying), :, :width] = like[torch.tensor(staying, device=like.device), :, :width]
                for row, states in enumerate(joining, start=len(staying)):
                    prompt = states[layer][which]
                    buffer[row, :, : prompt.shape[1]] = prompt
                layers[which].append(buffer)
        return RowCache(*layers)


def whole_columns(columns: int) -> int:
    """The next multiple of COLUMNS_MULTIPLE."""
    return -(-columns // COLUMNS_MULTIPLE) * COLUMNS_MULTIPLE


def cached_attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads tokens head_dim"],
    key: Float[Tensor, "rows kv_heads columns head_dim"],
    value: Float[Tensor, "rows kv_heads columns value_dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    cached: RowCache | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "rows tokens heads value_dim"], None]:
    """Attention of one token per row to its row of `cached`; without `cached`, of packed prompts (`segment_attention`).

    The query heads that share a key head become its queries, so keys and values are not repeated. Raises ValueError as
    `segment_attention` does.
    """
    if cached is None:
        return segment_attention(
            module, query, key, value, attention_mask, scaling, dropout, sliding_window, softcap, s_aux, **others
        )
    groups = query.shape[1] // key.shape[1]
    shared = query[:, :, 0].unflatten(1, (-1, groups))  # (rows, kv_heads, groups, head_dim)
    bias = cached.bias(sliding_window, query.dtype)  # a mask would be made into this in each layer
    if s_aux is not None:
        sinks = s_aux.view(1, -1, groups)  # (1, kv_heads, groups)
        bias = bias.expand(-1, *sinks.shape[1:], -1)
        key, value, bias = with_sinks(key, value, bias, sinks)
    if softcap is None:
        output = scaled_dot_product_attention(shared, key, value, attn_mask=bias, scale=scaling)
    else:
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        scores = softcap * torch.tanh(shared @ key.transpose(-1, -2) * scale / softcap)
        output = (scores + bias).softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return output.flatten(1, 2)[:, None], None


AttentionInterface.register(CACHED_ATTENTION, cached_attention)
