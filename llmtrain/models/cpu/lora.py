"""LoRA's linear layer in fewer passes over memory: the same arithmetic as peft's, summed in place.

    y = W x + s B (A x)        dx = W' dy + s A' (B' dy)

peft's layer makes B A x and its scaled copy beside W x, forward and backward. On a CPU, where a model of this kind
waits for memory as much as for arithmetic, that is a tenth of a step. The modules stay peft's, with their
parameters and names: only their class changes, in place, so that peft's own references to them stay valid.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

ADAPTER = "default"  # peft's name for the only adapter


def fuse_adapters(model: nn.Module) -> int:
    """Fuse every plain LoRA layer of a model; how many.

    Layers with dropout, DoRA, or a base that is not an ordinary linear layer stay as they are. Parameters must be
    whole on each rank: an engine that shards them gathers them around modules that are not called here.
    """
    layers = [module for module in model.modules() if type(module) is LoraLinear and _is_plain(module)]
    for layer in layers:
        layer.__class__ = FusedLoraLinear
    return len(layers)


class FusedLoraLinear(LoraLinear):
    """peft's LoRA layer, computed by `_LoraProduct` while its adapter is active."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        if args or kwargs or self.disable_adapters or self.merged or self.active_adapters != [ADAPTER]:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        base = self.get_base_layer()
        a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        product: Tensor = _LoraProduct.apply(x, base.weight, base.bias, a, b, self.scaling[ADAPTER])
        return product


def _is_plain(layer: LoraLinear) -> bool:
    return (
        list(layer.lora_A) == [ADAPTER]
        and type(layer.get_base_layer()) is nn.Linear
        and not layer.get_base_layer().weight.requires_grad
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and ADAPTER not in layer.lora_variant
        and not layer.fan_in_fan_out
        and not layer.lora_bias[ADAPTER]
    )


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch inputs"],
        weight: Float[Tensor, "outputs inputs"],
        bias: Float[Tensor, " outputs"] | None,
        a: Float[Tensor, "rank inputs"],
        b: Float[Tensor, "outputs rank"],
        scale: float,
    ) -> Float[Tensor, "*batch outputs"]:
        rows = x.flatten(0, -2)
        linear = nn.functional.linear(rows, weight, bias)  # in autocast's type, which the adapter's products follow
        reduced = rows.to(linear.dtype) @ a.to(linear.dtype).t()  # (rows, rank)
        # What is returned is no view: some models clamp it in place (OLMo's clip_qkv, Gemma 3n), which autograd
        # refuses of a view that a function like this one returns.
        linear.addmm_(reduced, b.to(linear.dtype).t(), alpha=scale)
        ctx.save_for_backward(rows, weight, a, b, reduced)
        ctx.scale = scale
        return linear.new_empty(0).set_(linear.unflatten(0, x.shape[:-1]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, a, b, reduced = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_reduced = (rows @ b.to(rows.dtype)).mul_(ctx.scale)  # (rows, rank)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = rows @ weight.to(rows.dtype)
            grad_x = grad_x.addmm_(grad_reduced, a.to(rows.dtype)).to(x.dtype).unflatten(0, grad.shape[:-1])
        grad_a = (grad_reduced.t() @ x.to(rows.dtype)).to(a.dtype)
        grad_b = (rows.t() @ reduced).mul_(ctx.scale).to(b.dtype)
        return grad_x, None, None, grad_a, grad_b, None
