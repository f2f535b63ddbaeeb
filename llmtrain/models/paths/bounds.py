"""The bounds of a pack's documents, handed down to layers that separate documents themselves.

    seq_idx        (1, tokens)  the number of each token's document: convolutions and state space models
    cu_seq_lens_q  (docs + 1,)  where each document begins, and the end: delta rules

The kernels of flash-linear-attention, mamba-ssm and causal-conv1d take them, and the models of `transformers` hand on
what they are called with. Without such kernels `transformers` refuses them; a layer that does not look at them leaks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.attention import Segments

SEQ_IDX, CU_SEQ_LENS = "seq_idx", "cu_seq_lens_q"


class HandBounds:
    """A hook before a model's forward: its arguments, and the bounds of their documents."""

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        segments = kwargs.get("segments")
        if segments is None or SEQ_IDX in kwargs:  # whole rows, or the model has handed them to its trunk
            return args, kwargs
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return args, kwargs | _bounds(segments, device)


def hand_bounds(model: PreTrainedModel, on: bool) -> None:
    """Let a model be handed the bounds of its documents from now on, or no longer."""
    for each in {id(each): each for each in (model, model.base_model)}.values():
        for key in [key for key, hook in each._forward_pre_hooks.items() if isinstance(hook, HandBounds)]:
            del each._forward_pre_hooks[key], each._forward_pre_hooks_with_kwargs[key]
        if on:
            each.register_forward_pre_hook(HandBounds(), with_kwargs=True)


def is_handed_bounds(model: PreTrainedModel) -> bool:
    """Whether a model is handed the bounds of its documents."""
    return any(isinstance(hook, HandBounds) for hook in model._forward_pre_hooks.values())


def _bounds(segments: Segments, device: torch.device) -> dict[str, Tensor]:
    lengths = torch.tensor([run.length for run in segments.runs for _ in range(run.num_segments)])
    numbers = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), lengths)
    starts = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    return {SEQ_IDX: numbers[None].to(device), CU_SEQ_LENS: starts.to(device)}
