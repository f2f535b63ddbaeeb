"""One process, DDP and FSDP2: gradients are in `parameter.grad`, whole or as a rank's shard of a DTensor."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from llmtrain.protocols import Sharding
from llmtrain.system.memory import separate_allocations
from llmtrain.train.engines import state
from llmtrain.train.engines.base import EngineSettings, NamedState, ReadState, StepResult
from llmtrain.train.optim import make_state


class PlainEngine:
    """The engine of one process, and of several that each hold the whole model, or a shard by torch's `fully_shard`."""

    def __init__(self, accelerator: Accelerator, settings: EngineSettings) -> None:
        self._accelerator, self._max_grad_norm = accelerator, settings.max_grad_norm
        is_sharded = accelerator.distributed_type == DistributedType.FSDP
        self.sharding: Sharding = "layers" if is_sharded else "none"

    @property
    def supports_partial_backward(self) -> bool:
        return self._accelerator.num_processes == 1  # else every gradient is waited for

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        self._model, self._optimizer = model, optimizer
        self._prepared, self._wrapped = self._accelerator.prepare(model, optimizer)
        return self._prepared, self._wrapped

    def make_state(self) -> None:
        """Made in the first step, it would lie in the gaps between what that step frees, and keep them open."""
        with separate_allocations():
            make_state(self._optimizer)

    def microbatch(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self._accelerator.no_sync(self._prepared)

    def backward(self, share: Tensor) -> None:
        self._accelerator.backward(share * self._accelerator.num_processes)  # gradients are averaged over ranks

    def step(self, is_finite: Tensor) -> StepResult:
        return clip_and_step(self._accelerator, self._optimizer, self._wrapped, self._max_grad_norm, is_finite)

    def named_state(self, *, is_main: bool) -> NamedState:
        reshard(self._model)
        return state.named_state(self._model, self._wrapped, is_main)

    def load_named_state(self, read: ReadState) -> None:
        reshard(self._model)
        with separate_allocations():
            state.load_named_state(self._model, self._wrapped, read)

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()  # rollouts, which ask for whole weights, are refused under FSDP2


def reshard(model: nn.Module) -> None:
    """Let the parameters of a model be the shards that the optimizer has.

    FSDP2 leaves those of the root whole after a forward without a backward. `parameters()` then gives other tensors,
    of which the optimizer has no state, and what is written into them is lost.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def clip_and_step(
    accelerator: Accelerator,
    optimizer: Optimizer,
    wrapped: Optimizer,
    max_grad_norm: float | None,
    is_finite: Tensor,
) -> StepResult:
    """Clip gradients in `parameter.grad`, whole or sharded, and step; `wrapped` is accelerate's of `optimizer`."""
    parameters = [p for group in wrapped.param_groups for p in group["params"] if p.grad is not None]
    grads = [p.grad for p in parameters if p.grad is not None]
    if not is_finite:
        grads[0].fill_(math.nan)  # a clamp in the last share may have kept its NaN from every gradient
    scaler = accelerator.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = state.whole(get_total_norm(grads))
    grad_norm = float(norm)
    applied = math.isfinite(grad_norm)
    if applied and max_grad_norm is not None and grad_norm > max_grad_norm:
        clip_grads_with_norm_(parameters, max_grad_norm, norm)
    if applied or scaler is not None:  # the scaler skips by itself, and lowers its scale
        wrapped.step()
    wrapped.zero_grad(set_to_none=True)
    return StepResult(applied, grad_norm)
