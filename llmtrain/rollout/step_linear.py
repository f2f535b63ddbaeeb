"""Linear layers for the few rows of a decoding step, on a CPU, where a library's product of many rows is slow.

Two ways, for layers in fp32 that are one product, an adapter's included:

packed   What MKL does to a weight at every product is done once, to a copy with its adapter added in. A row's product
         is the same to the bit for any number of rows. The copies take a second, so they are for long responses.
blocks   The weight as it lies, as a batch of blocks of 64 outputs, each of which one thread multiplies by itself: for
         up to 12 rows a product takes a half (an output head) to nine tenths of the time.

A step of 8 rows of SmolLM2-135M with LoRA takes 53 ms with packed layers, 68 with blocks, 82 with neither (2 cores).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from llmtrain.device import separate_allocations
from llmtrain.models.fused_lora import FusedLoraLinear
from llmtrain.models.lm_head import LossHead
from llmtrain.models.token_logprobs import LogprobHead

MAX_BYTES = 2**31  # of packed copies; a larger model keeps its memory
BLOCK = 64  # outputs
MAX_BLOCK_ROWS = 12

Product = Callable[[Float[Tensor, "rows inputs"]], Float[Tensor, "rows outputs"]]


class StepLinears:
    """A model's linear layers, as they are now, for inputs of `rows` rows."""

    def __init__(self, model: nn.Module, rows: int, *, packs: bool) -> None:
        """`packs`: let layers be packed, where that can be."""
        self.rows = rows
        layers = _single_products(model) if in_fp32_on_cpu(model) else []
        if packs and can_pack(layers):
            with separate_allocations(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
                self._products = dict(zip(layers, pool.map(partial(_packed, rows=rows), layers), strict=True))
        else:
            self._products = {layer: _blocks(layer) for layer in layers if rows <= MAX_BLOCK_ROWS and _divides(layer)}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the layers compute this way."""
        for layer, product in self._products.items():
            layer.forward = partial(_forward, layer, product, self.rows)
        try:
            yield
        finally:
            for layer in self._products:
                del layer.forward


def in_fp32_on_cpu(model: nn.Module) -> bool:
    """Whether a model computes in fp32, on a CPU."""
    return not torch.is_autocast_enabled("cpu") and all(
        parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in model.parameters()
    )


def can_pack(layers: list[nn.Module]) -> bool:
    """Whether copies of these layers can be packed: with MKL, and if they are not too large."""
    weights = [_base(layer).weight for layer in layers]
    return torch.backends.mkl.is_available() and sum(weight.nbytes for weight in weights) <= MAX_BYTES


def _single_products(model: nn.Module) -> list[nn.Module]:
    """The outermost layers that are one product, an adapter's included."""
    found: list[nn.Module] = []
    inner: set[nn.Module] = set()
    for layer in model.modules():  # an adapter's layer comes before what it is made of
        if layer in inner:
            continue
        if isinstance(layer, LoraLinear) and _adds_a_product(layer):
            inner.update(layer.modules())
            found.append(layer)
        elif type(layer) in (nn.Linear, LossHead, LogprobHead):
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


def _adapters(layer: nn.Module) -> list[tuple[Tensor, Tensor, float]]:
    """A, B and scale of each adapter that is on."""
    if not isinstance(layer, LoraLinear) or layer.disable_adapters or layer.merged:
        return []
    return [
        (layer.lora_A[name].get_parameter("weight"), layer.lora_B[name].get_parameter("weight"), layer.scaling[name])
        for name in layer.active_adapters
        if name in layer.lora_A
    ]


def _packed(layer: nn.Module, rows: int) -> Product:
    base = _base(layer)
    weight = base.weight.detach()
    with torch.no_grad():  # which each thread of the pool has for itself
        for a, b, scale in _adapters(layer):
            weight = torch.addmm(weight, b, a, alpha=scale)
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkl._mkl_linear(x, packed, base.weight, base.bias, rows)


def _divides(layer: nn.Module) -> bool:
    return _base(layer).out_features % BLOCK == 0


def _blocks(layer: nn.Module) -> Product:
    base = _base(layer)
    blocks = base.weight.detach().unflatten(0, (-1, BLOCK)).transpose(1, 2)  # (blocks, inputs, BLOCK)
    adapters = [(a.detach().t(), b.detach().t(), scale) for a, b, scale in _adapters(layer)]

    def product(x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        output = torch.matmul(x, blocks).transpose(0, 1).flatten(1)
        if base.bias is not None:
            output += base.bias
        for a, b, scale in adapters:
            output.addmm_(x @ a, b, alpha=scale)
        return output

    return product


def _forward(layer: nn.Module, product: Product, rows: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """(..., inputs) -> (..., outputs), by the product where x has the rows that it is for."""
    if args or kwargs or x.numel() != rows * x.shape[-1]:
        output: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return output
    if x.ndim == 2:
        return product(x)
    return product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
