"""Whether a model's layers take the CPU's fast path, decided in one place."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from llmtrain.models.cpu.layers import fuse_layers
from llmtrain.models.cpu.lora import fuse_adapters


def prepare_layers(model: PreTrainedModel, device: torch.device, *, shards_parameters: bool = False) -> None:
    """Let layers and adapters take their short forms on CPUs, where these were measured; elsewhere do nothing.

    An engine that shards parameters gathers them around modules that the short forms do not call, so such models stay
    as they are. Safe to call again, after an adapter was added.
    """
    if device.type == "cpu" and not shards_parameters:
        fuse_adapters(model)
        fuse_layers(model)
