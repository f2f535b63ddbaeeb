"""The one way to run a `transformers` model on packed documents.

inputs = pack_inputs(batch, kernel)
hidden = run_trunk(model.base_model, inputs)    # what a head reads
logits = run_model(model, inputs)               # the model's own head included
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.attention import plan_segments
from llmtrain.models.paths.rows import Rows
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


def layer_classes(model: PreTrainedModel) -> list[str]:
    """What FSDP shards one by one: the classes of layers that a model names and has; a multimodal one may lack some."""
    present = {type(module).__name__ for module in model.modules()}
    return sorted(present.intersection(model._no_split_modules or ()))


Inputs = dict[str, Any] | Rows
"""What a model is called with: the keyword arguments of a packed call, or rows, each group of which is a call."""


class Routed(NamedTuple):
    """What a model of experts outputs."""

    outputs: Float[Tensor, "tokens outputs"]  # logits of a whole model, the last hidden states of its trunk
    router_logits: tuple[Float[Tensor, "tokens experts"], ...]  # of each layer that has experts


def pack_inputs(batch: TokenBatch, kernel: AttentionKernel) -> Inputs:
    """What a model is called with on a batch; attention is planned once, for all trunks and layers."""
    if kernel == "padded" or kernel == "equal" or kernel == "fixed":
        assert not any(batch.prefix_lengths), "asked before"
        return Rows.of(batch.input_ids, batch.segment_lengths, kernel)
    return packed_inputs(batch, kernel)


def packed_inputs(batch: TokenBatch, kernel: AttentionKernel) -> dict[str, Any]:
    """The keyword arguments of a call on one pack."""
    return {
        "input_ids": batch.input_ids[None],
        "position_ids": batch.position_ids[None],
        "segments": plan_segments(batch.segment_lengths, kernel, batch.input_ids.device, batch.prefix_lengths),
        "use_cache": False,
    }


def run_trunk(trunk: nn.Module, inputs: Inputs) -> Float[Tensor, "tokens hidden"]:
    """The last hidden state of each token; `trunk` is a model without its head."""
    if isinstance(inputs, Rows):
        return inputs.joined([outputs.last_hidden_state for outputs in inputs.run(trunk)])
    hidden: Tensor = trunk(**inputs).last_hidden_state
    return hidden[0]


def run_its_trunk(model: nn.Module, inputs: Inputs) -> Float[Tensor, "tokens hidden"]:
    """The last hidden state of each token, of a model with a head."""
    assert isinstance(model, PreTrainedModel)
    return run_trunk(model.base_model, inputs)


def run_model(model: nn.Module, inputs: Inputs) -> Float[Tensor, "tokens vocab"]:
    """The logits of each token, by the model's own head."""
    if isinstance(inputs, Rows):
        return inputs.joined([outputs.logits for outputs in inputs.run(model)])
    logits: Tensor = model(**inputs).logits
    return logits[0]


def run_routed(model: nn.Module, inputs: Inputs) -> Routed:
    """The outputs of a model or its trunk, and what its routers gave each token; padding has neither."""
    if not isinstance(inputs, Rows):
        outputs = model(**inputs, output_router_logits=True)
        return Routed(_per_token(outputs)[0], tuple(_router_logits(outputs)))
    calls = inputs.run(partial(model, output_router_logits=True))
    shapes = [(group.num_rows, group.length) for group in inputs.groups.groups]
    layers = zip(*(_router_logits(call) for call in calls), strict=True)
    return Routed(
        inputs.joined([_per_token(call) for call in calls]),
        tuple(
            inputs.joined([part.unflatten(0, shape) for part, shape in zip(each, shapes, strict=True)])
            for each in layers
        ),
    )


def _per_token(outputs: Any) -> Float[Tensor, "rows length outputs"]:
    found: Tensor = outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]
    return found


def _router_logits(outputs: Any) -> list[Float[Tensor, "tokens experts"]]:
    """Of each layer that has experts."""
    return [layer.flatten(0, -2) for layer in outputs.router_logits if layer is not None]
