"""RMSNorm and SwiGLU in fewer passes over memory, saving less for backward: the same arithmetic, in fp32 on CPUs.

    RMSNorm:  y = w x / sqrt(mean(x^2) + eps)        (Zhang and Sennrich 2019)
    SwiGLU:   y = silu(gate) up                      (Shazeer 2020)

Written out operation by operation, as `transformers` does, each reads and writes every activation several times and
keeps copies for backward. Only layers that give the same as these on a probe are changed. Their class is changed in
place, since adapters, hooks and references to the layers must stay valid: parameters and names stay.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from llmtrain.models.adapters.quantized import in_4_bits

PROBE_TOKENS = 4
PROBE_TOLERANCE = 1e-6


def fuse_layers(model: PreTrainedModel) -> tuple[int, int]:
    """Fuse a model's norms and gated MLPs whose results stay the same; how many of each.

    Parameters must be whole on each rank, as for `fuse_adapters`.
    """
    was_training = model.training
    model.eval()  # the probe must meet no dropout
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    mlps = [module for module in model.modules() if is_swiglu(module) and not in_4_bits(module)]
    fused = ([_fuse(norm, FusedNorm) for norm in norms], [_fuse(mlp, FusedSwiGlu) for mlp in mlps])
    model.train(was_training)
    return sum(fused[0]), sum(fused[1])


class FusedNorm:
    """Mixed into a `transformers` RMSNorm class, before it."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        if hidden_states.dtype != torch.float32:
            return super().forward(hidden_states)  # type: ignore[misc]
        output: Tensor = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)
        return output


class FusedSwiGlu:
    """Mixed into a `transformers` gated MLP class, before it. In training it goes past any hook on its projections."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        layers = (self.gate_proj, self.up_proj, self.down_proj)
        in_fp32 = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        output: Tensor
        if torch.is_grad_enabled() and in_fp32 and all(_is_plain(layer) for layer in layers):
            output = _GatedMlp.apply(x, *(layer.weight for layer in layers))
        else:
            output = self.down_proj(_SwiGlu.apply(self.gate_proj(x), self.up_proj(x)))
        return output


def is_swiglu(module: nn.Module) -> bool:
    """Whether a module is a gated MLP with SiLU, as `transformers` writes it."""
    names = {name for name, _ in module.named_children()}
    return names == {"gate_proj", "up_proj", "down_proj", "act_fn"} and isinstance(
        module.get_submodule("act_fn"), (nn.SiLU, SiLUActivation)
    )


@torch.no_grad()
def _fuse(module: nn.Module, short: type) -> bool:
    """Put `short` before a module's class, unless that changes what it gives."""
    stock = type(module)
    if issubclass(stock, short) or (short is FusedNorm and "variance_epsilon" not in vars(module)):
        return False
    weight = module.get_parameter("weight") if short is FusedNorm else _first_matrix(module)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, PROBE_TOKENS, weight.shape[-1], generator=generator).to(weight)
    expected = module(probe)
    module.train()
    is_random = not torch.equal(module(probe), module(probe))  # dropout within, which the short way would leave out
    module.eval()
    if is_random:
        return False
    module.__class__ = type(f"{short.__name__}{stock.__name__}", (short, stock), {})
    if bool((module(probe) - expected).abs().max() <= PROBE_TOLERANCE * expected.abs().max()):
        return True
    module.__class__ = stock
    return False


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a product and nothing else."""
    return type(layer) is nn.Linear and layer.bias is None


def _first_matrix(mlp: nn.Module) -> nn.Parameter:
    """The gate's weight, also where an adapter lies around it."""
    return next(parameter for parameter in mlp.get_submodule("gate_proj").parameters() if parameter.ndim == 2)


def _reciprocal_rms(x: Float[Tensor, "*batch hidden"], eps: float) -> Float[Tensor, "*batch 1"]:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*batch hidden"], weight: Float[Tensor, " hidden"], eps: float
    ) -> Float[Tensor, "*batch hidden"]:
        rstd = _reciprocal_rms(x, eps)
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, rstd = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * x).flatten(0, -2).t() @ rstd.flatten()
        scaled = grad * weight
        inner = torch.linalg.vecdot(scaled, x).unsqueeze(-1)  # (*batch, 1)
        inner = inner.mul_(rstd).mul_(rstd).div_(x.shape[-1])
        return scaled.addcmul_(x, inner, value=-1).mul_(rstd), grad_weight, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: Float[Tensor, "*batch inner"], up: Float[Tensor, "*batch inner"]
    ) -> Float[Tensor, "*batch inner"]:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        return _swiglu_backward(grad, gate, up, nn.functional.silu(gate))


class _GatedMlp(torch.autograd.Function):
    """The three products and what is between them, which is not kept: its gradient's product makes it again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch hidden"],
        gate_weight: Float[Tensor, "inner hidden"],
        up_weight: Float[Tensor, "inner hidden"],
        down_weight: Float[Tensor, "hidden inner"],
    ) -> Float[Tensor, "*batch hidden"]:
        rows = x.flatten(0, -2)
        gate, up = rows @ gate_weight.t(), rows @ up_weight.t()
        kept = rows if any(ctx.needs_input_grad[1:3]) else None
        ctx.save_for_backward(kept, gate, up, gate_weight, up_weight, down_weight)
        return (nn.functional.silu(gate).mul_(up) @ down_weight.t()).unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gate, up, gate_weight, up_weight, down_weight = ctx.saved_tensors
        need_x, need_gate, need_up, need_down = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        activated = nn.functional.silu(gate)
        grad_down = rows.t() @ (activated * up) if need_down else None
        grad_gate, grad_up = _swiglu_backward(rows @ down_weight, gate, up, activated)
        grad_x = None
        if need_x:
            grad_x = (grad_gate @ gate_weight).addmm_(grad_up, up_weight).unflatten(0, grad.shape[:-1])
        return grad_x, grad_gate.t() @ x if need_gate else None, grad_up.t() @ x if need_up else None, grad_down


def _swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor, activated: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; `activated`, silu(gate), is written over."""
    return torch.ops.aten.silu_backward(grad * up, gate), activated.mul_(grad)
