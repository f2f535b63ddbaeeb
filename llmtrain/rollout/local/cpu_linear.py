"""Linear layers for the few rows of a decoding step on a CPU, where libraries are made for many rows.

For layers in fp32 that are one product, an adapter's included, with the weights that they have as a generation begins:

merged   An adapter is added to a copy of its weight, once, instead of two small products per step. Layers with the
         same input share one copy and one product.
blocks   A weight, not copied, as a batch of blocks of 64 outputs, each multiplied by one thread: for up to 12 rows a
         product takes a half (an output head) to nine tenths of the time.
packed   MKL reorders a weight at every product; here it does so once, to a copy. A row's product is the same to the
         bit for any number of rows. The copies take a second, so they are for long responses.

A step of 8 rows of SmolLM2-135M with LoRA takes 53 ms with packed layers, 55 to 60 merged and in blocks, 80 with
neither (2 cores).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from llmtrain.models.cpu.lora import FusedLoraLinear
from llmtrain.models.heads.head import Head
from llmtrain.system.memory import separate_allocations

MAX_BYTES = 2**31  # of copies; a larger model keeps its memory
BLOCK = 64  # outputs
MAX_BLOCK_ROWS = 12

Layers = tuple[nn.Module, ...]
"""Layers with the same input."""

Product = Callable[[Float[Tensor, "rows inputs"]], Float[Tensor, "rows outputs"]]


class StepLinears:
    """A model's linear layers, as they are now, for inputs of `rows` rows."""

    def __init__(self, model: nn.Module, rows: int, *, packs: bool, together: Sequence[Layers] = ()) -> None:
        """`packs`: pack the layers if possible. `together`: the groups of layers that `outputs` is called with."""
        self.rows = rows
        self._joint: dict[Layers, tuple[Product, list[int]]] = {}  # and the outputs of each layer
        layers = _single_products(model) if in_fp32_on_cpu(model) else []
        fits = sum(_base(layer).weight.nbytes for layer in layers) <= MAX_BYTES
        self._products: dict[nn.Module, Product]
        if packs and fits and torch.backends.mkl.is_available():
            with separate_allocations(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
                self._products = dict(zip(layers, pool.map(partial(_packed, rows=rows), layers), strict=True))
        else:
            of_joint: set[nn.Module] = set()
            for group in together if fits and rows <= MAX_BLOCK_ROWS else ():
                adapted = all(layer in layers and _is_adapted(layer) for layer in group)
                if adapted and (joint := _joint(group)) is not None:
                    self._joint[group] = joint
                    of_joint.update(group)
            alone = [layer for layer in layers if layer not in of_joint and (fits or not isinstance(layer, LoraLinear))]
            products = {layer: _merged(layer, rows) for layer in alone}
            self._products = {layer: product for layer, product in products.items() if product is not None}

    def outputs(self, layers: Layers, x: Float[Tensor, "rows inputs"]) -> Sequence[Float[Tensor, "rows _"]]:
        """The output of each layer, bypassing its hooks."""
        assert x.shape[0] == self.rows
        if layers in self._joint:
            product, sizes = self._joint[layers]
            return product(x).split(sizes, dim=1)
        return [self._products.get(layer, layer)(x) for layer in layers]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which the layers compute this way."""
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
        elif type(layer) in (nn.Linear, Head):
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


def _is_adapted(layer: nn.Module) -> TypeGuard[LoraLinear]:
    return isinstance(layer, LoraLinear) and not layer.disable_adapters and not layer.merged


@torch.no_grad()  # which each thread of a pool has for itself
def _weight(layer: nn.Module) -> Tensor:
    """A layer's weight, (outputs, inputs), as a copy with the adapters that are on."""
    weight: Tensor = _base(layer).weight.detach()
    if _is_adapted(layer):
        for name in layer.active_adapters:
            if name in layer.lora_A:
                a, b = (part[name].get_parameter("weight") for part in (layer.lora_A, layer.lora_B))
                weight = torch.addmm(weight, b, a, alpha=layer.scaling[name])
    return weight


def _packed(layer: nn.Module, rows: int) -> Product:
    base = _base(layer)
    packed = torch.ops.mkl._mkl_reorder_linear_weight(_weight(layer), rows)
    return lambda x: torch.ops.mkl._mkl_linear(x, packed, base.weight, base.bias, rows)


def _merged(layer: nn.Module, rows: int) -> Product | None:
    """None: the layer's own forward does the same."""
    weight, bias = _weight(layer), _base(layer).bias
    if rows <= MAX_BLOCK_ROWS and weight.shape[0] % BLOCK == 0:
        return _by_blocks(weight, bias)
    if weight.data_ptr() == _base(layer).weight.data_ptr():
        return None
    return lambda x: nn.functional.linear(x, weight, bias)


def _joint(layers: Layers) -> tuple[Product, list[int]] | None:
    """The product of several layers' weights end to end, a copy, and the outputs of each; None if impossible."""
    biases: list[Tensor] = [bias for layer in layers if (bias := _base(layer).bias) is not None]
    sizes = [_base(layer).weight.shape[0] for layer in layers]
    if sum(sizes) % BLOCK or len(biases) not in (0, len(layers)):
        return None
    weight = torch.cat([_weight(layer) for layer in layers])
    return _by_blocks(weight, torch.cat(biases) if biases else None), sizes


def _by_blocks(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> Product:
    blocks = weight.unflatten(0, (-1, BLOCK)).transpose(1, 2)  # (blocks, inputs, BLOCK)
    if bias is None:
        return lambda x: torch.matmul(x, blocks).transpose(0, 1).flatten(1)
    return lambda x: torch.matmul(x, blocks).transpose(0, 1).flatten(1).add_(bias)


def _forward(layer: nn.Module, product: Product, rows: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """(..., inputs) -> (..., outputs), by the product if x has the rows that it is made for."""
    if args or kwargs or x.numel() != rows * x.shape[-1]:
        output: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return output
    if x.ndim == 2:
        return product(x)
    return product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
