"""Linear layers laid out for a few rows, on a CPU: what MKL does to a weight at every product is done once.

A decoding step multiplies a handful of rows by every weight, and there the layout costs as much as the arithmetic. With
a packed copy of each weight, its adapter added in, a step of 8 rows of SmolLM2-135M with LoRA takes 78 ms in place of
94 (2 cores); the copies take 1.1 s, so they are for long responses. The weights themselves stay untouched. A row's
product is the same to the bit for any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from llmtrain.device import separate_allocations
from llmtrain.models.fused_lora import FusedLoraLinear
from llmtrain.models.lm_head import LossHead

MAX_BYTES = 2**31  # of the copies; a larger model keeps its memory


class PackedLinears:
    """Packed copies of a model's linear layers, as they are now, for inputs of `rows` rows."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        """Copy the weights; `can_pack` says where that is possible."""
        self.rows = rows
        self._layers = _packable(model)
        with separate_allocations(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
            self._packed = list(pool.map(partial(_packed, rows=rows), self._layers))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the layers compute with the copies."""
        for layer, packed in zip(self._layers, self._packed, strict=True):
            layer.forward = partial(_product, layer, packed, self.rows)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward


def can_pack(model: nn.Module) -> bool:
    """Whether a model's layers can be packed here: in fp32 on a CPU with MKL, and not too large."""
    layers = _packable(model)
    weights = [_base(layer).weight for layer in layers]
    return (
        torch.backends.mkl.is_available()
        and not torch.is_autocast_enabled("cpu")
        and bool(weights)
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        and sum(weight.numel() * weight.element_size() for weight in weights) <= MAX_BYTES
    )


def _packable(model: nn.Module) -> list[nn.Module]:
    """The outermost layers that are one product, an adapter's included."""
    found: list[nn.Module] = []
    inner: set[nn.Module] = set()
    for layer in model.modules():  # an adapter's layer comes before what it is made of
        if layer in inner:
            continue
        if isinstance(layer, LoraLinear) and _adds_a_product(layer):
            inner.update(layer.modules())
            found.append(layer)
        elif type(layer) in (nn.Linear, LossHead):
            found.append(layer)
    return found


def _adds_a_product(layer: LoraLinear) -> bool:
    """Whether a layer with adapters is y = (W + s B A) x: no DoRA, no bias of its own."""
    ours = type(layer) in (LoraLinear, FusedLoraLinear)
    plain = not layer.lora_variant and not any(layer.lora_bias.values()) and not layer.fan_in_fan_out
    return ours and plain and type(layer.get_base_layer()) is nn.Linear


def _base(layer: nn.Module) -> nn.Linear:
    base = layer.get_base_layer() if isinstance(layer, LoraLinear) else layer
    assert isinstance(base, nn.Linear)
    return base


def _packed(layer: nn.Module, rows: int) -> Tensor:
    with torch.no_grad():  # which each thread of the pool has for itself
        weight = _base(layer).weight.detach()
        if isinstance(layer, LoraLinear) and not layer.disable_adapters and not layer.merged:
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    lora_a, lora_b = (part[adapter].get_parameter("weight") for part in (layer.lora_A, layer.lora_B))
                    weight = torch.addmm(weight, lora_b, lora_a, alpha=layer.scaling[adapter])
        packed: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return packed


def _product(layer: nn.Module, packed: Tensor, rows: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """(rows, ..., inputs) -> (rows, ..., outputs), where x has the rows that the copy is for."""
    base = _base(layer)
    if args or kwargs or x.numel() != rows * x.shape[-1]:
        output: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return output
    product: Tensor = torch.ops.mkl._mkl_linear(x, packed, base.weight, base.bias, rows)
    return product
