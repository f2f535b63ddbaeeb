"""What the runtime asks of an engine: prepare a module, add gradients, step, and give its state by parameter name.

An engine is a file in this folder and a row of `table.ENGINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from llmtrain.protocols import Sharding

Precision = Literal["fp32", "bf16", "fp16"]

NamedState = Iterator[tuple[str, dict[str, Tensor]]]
"""(parameter or buffer, its value under `param` and its optimizer state), full tensors on the CPU."""

ReadState = Callable[[str], dict[str, Tensor]]
"""Name of a parameter or buffer -> what `NamedState` has of it."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is made with."""

    precision: Precision
    max_grad_norm: float | None  # None: gradients are not clipped
    timeout: timedelta  # after which a collective of any process group gives up


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did."""

    applied: bool  # False: a loss or gradient was not finite, and nothing changed
    grad_norm: float  # global L2 norm before clipping; inf or nan if the step was not applied


class Engine(Protocol):
    """One way of training a module with several processes, or with one. It acts on what it prepared last."""

    @property
    def sharding(self) -> Sharding:
        """What is gathered at a time; unless it is `none`, parameters are whole only during a call."""
        ...

    @property
    def supports_partial_backward(self) -> bool:
        """Whether a loss may reach some of the parameters only; else the engine waits for the gradients of all."""
        ...

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """The module and optimizer to train with. Collective."""
        ...

    def make_state(self) -> None:
        """Make the optimizer's state before the first step: of every trained parameter, whether it gets gradients."""
        ...

    def microbatch(self, *, last: bool) -> AbstractContextManager[None]:
        """What the forward and the backward of a microbatch run in; `last`: it is the step's last one.

        Ranks exchange gradients with the last one alone, where the engine can wait, and it decides that in the forward.
        """
        ...

    def backward(self, share: Tensor) -> None:
        """Add the gradient of a share, so that the gradients are those of its sum over ranks and microbatches.

        Collective in the last microbatch, and where the engine cannot wait for it.
        """
        ...

    def step(self, is_finite: Tensor) -> StepResult:
        """Clip and update, unless a gradient or `is_finite` (scalar) says that the step is bad; drop the gradients.

        If `is_finite` is False, the last share was NaN on every rank. Collective.
        """
        ...

    def named_state(self, *, is_main: bool) -> NamedState:
        """Every trained parameter and persistent buffer, weights in fp32. Collective.

        Ranks other than the main one get empty dictionaries: they iterate only to join the collectives.
        """
        ...

    def load_named_state(self, read: ReadState) -> None:
        """Set parameters, buffers and optimizer state to what `read` returns. Collective; every rank reads.

        Raises ValueError if a shape differs.
        """
        ...

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        """With the weights of a part of the prepared module whole, to be read. Collective on entry."""
        ...


MakeEngine = Callable[[Accelerator, EngineSettings], Engine]
