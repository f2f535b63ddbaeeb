"""The one way to run a `transformers` model on packed documents.

inputs = pack_inputs(batch, kernel)
hidden = run_trunk(model.base_model, inputs)    # what a head reads
logits = run_model(model, inputs)               # the model's own head included
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor, nn

from llmtrain.models.attention import plan_segments
from llmtrain.system.device import AttentionKernel


class TokenBatch(Protocol):
    """What a trunk reads of a microbatch: documents end to end, and their bounds."""

    @property
    def input_ids(self) -> Int[Tensor, " tokens"]: ...
    @property
    def position_ids(self) -> Int[Tensor, " tokens"]: ...
    @property
    def segment_lengths(self) -> tuple[int, ...]: ...  # tokens of each segment, on the host
    @property
    def prefix_lengths(self) -> tuple[int, ...]: ...  # tokens of each shared prefix; (): no segments share one


class Documents(NamedTuple):
    """Documents end to end without labels, for a call that trains nothing."""

    input_ids: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    segment_lengths: tuple[int, ...]
    prefix_lengths: tuple[int, ...] = ()


def pack_inputs(batch: TokenBatch, kernel: AttentionKernel) -> dict[str, Any]:
    """The keyword arguments of a model's call on a batch; attention is planned once, for all trunks and layers."""
    return {
        "input_ids": batch.input_ids[None],
        "position_ids": batch.position_ids[None],
        "segments": plan_segments(batch.segment_lengths, kernel, batch.input_ids.device, batch.prefix_lengths),
        "use_cache": False,
    }


def run_trunk(trunk: nn.Module, inputs: dict[str, Any]) -> Float[Tensor, "tokens hidden"]:
    """The last hidden state of each token; `trunk` is a model without its head."""
    hidden: Tensor = trunk(**inputs).last_hidden_state
    return hidden[0]


def run_model(model: nn.Module, inputs: dict[str, Any]) -> Float[Tensor, "tokens vocab"]:
    """The logits of each token, by the model's own head."""
    logits: Tensor = model(**inputs).logits
    return logits[0]
