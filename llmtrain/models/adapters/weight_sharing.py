"""Weight sharing: several models, each with its own modules, on the same frozen weights.

Policy, reference, critic and reward model differ by adapters and heads; frozen weights are in memory once.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model that has the same parameters and buffers in memory: other modules, no other weights."""
    kept = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in kept})


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model with its own parameters, which are not trained."""
    twin = copy.deepcopy(model)
    return twin.requires_grad_(False)


def share_equal(model: nn.Module, base: nn.Module) -> int:
    """Let a model's frozen parameters be those of a base, where both are frozen and equal; the bytes saved.

    They are matched by name, with adapters around them or without, and compared in full.
    """
    frozen = {_plain(name): parameter for name, parameter in base.named_parameters() if not parameter.requires_grad}
    saved = 0
    for name, parameter in model.named_parameters():
        twin = frozen.get(_plain(name))
        if twin is None or parameter.requires_grad or twin is parameter:
            continue
        if (twin.dtype, twin.device, twin.shape) == (parameter.dtype, parameter.device, parameter.shape):
            if torch.equal(twin, parameter):
                parameter.data = twin.data
                saved += twin.numel() * twin.element_size()
    return saved


def _plain(name: str) -> str:
    return name.replace(".base_layer", "")
