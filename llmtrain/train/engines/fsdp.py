"""FSDP2: parameters, gradients and optimizer state are DTensors, of which each rank holds a shard."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from llmtrain.system.memory import separate_allocations
from llmtrain.train.engines import state
from llmtrain.train.engines.base import EngineSettings, NamedState, ReadState, StepResult
from llmtrain.train.engines.plain import add_gradients, clip_and_step
from llmtrain.train.optim import make_state


class FsdpEngine:
    """The engine of processes that each hold a shard of every parameter, by torch's `fully_shard`."""

    shards_parameters = True
    supports_partial_backward = False

    def __init__(self, accelerator: Accelerator, settings: EngineSettings) -> None:
        self._accelerator, self._max_grad_norm = accelerator, settings.max_grad_norm

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        self._optimizer = optimizer
        self._prepared, self._wrapped = self._accelerator.prepare(model, optimizer)
        return self._prepared, self._wrapped

    def make_state(self) -> None:
        with separate_allocations():
            make_state(self._optimizer)

    def backward(self, share: Tensor, *, last: bool) -> None:
        add_gradients(self._accelerator, self._prepared, share, last=last)

    def step(self, is_finite: Tensor) -> StepResult:
        return clip_and_step(self._accelerator, self._optimizer, self._wrapped, self._max_grad_norm, is_finite)

    def named_state(self, *, is_main: bool) -> NamedState:
        return state.named_state(self._prepared, self._wrapped, is_main)

    def load_named_state(self, read: ReadState) -> None:
        with separate_allocations():
            state.load_named_state(self._prepared, self._wrapped, read)

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()  # rollouts, which ask for whole weights, are refused under FSDP2
