"""The protocols that rooms know each other by: where batches come from, what is minimised, which processes train.

One optimizer step is `loss = sum over microbatches and ranks of share`, where a share is already
divided by denominators counted over the whole step, so splitting a batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Batch = TypeVar("Batch")
Batch_contra = TypeVar("Batch_contra", contravariant=True)

Array = np.ndarray[Any, Any]

Report = Callable[[str], None]
"""Takes a line for the user."""

Counts = Mapping[str, float]
"""Named denominators of one microbatch: `tokens`, always, and what else the loss divides by: pairs, sequences."""

Role = Literal["hidden", "head", "embedding", "vector", "critic"]
"""What a parameter does, which its optimizer asks: a matrix between hidden states, the output head, an input
embedding, a norm or bias; anything of a critic's own."""

Metrics = Mapping[str, Tensor]
"""Shares (scalar, detached) whose sum over the microbatches and ranks of a step is the step's value."""


class StepBatch(Protocol):
    """What the loop asks of a microbatch."""

    @property
    def sample_ids(self) -> tuple[int, ...]: ...
    @property
    def num_tokens(self) -> int: ...  # that run through the model for a sample's sake; 0 in an empty microbatch
    def to(self, device: torch.device) -> Any: ...


BatchType = TypeVar("BatchType", bound=StepBatch)


class Interrupted(Exception):
    """Making a step's microbatches took long, and was stopped on every rank because one was asked to stop."""


class BatchSource(Protocol[Batch]):
    """Where a step's microbatches come from: a stored dataset, or rollouts made on demand."""

    def next_step(self) -> list[Batch] | None:
        """This rank's microbatches of one optimizer step, as many as on every other rank; None: finished.

        Raises Interrupted, its state unchanged, where it was asked to stop on the way.
        """
        ...

    def metrics(self) -> Mapping[str, float]:
        """What there is to tell of the data at hand, the same on every rank; it joins the step's row."""
        ...

    def put_back(self) -> None:
        """Take back the step that `next_step` gave last: it will be given again."""
        ...

    def skip_last(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """`state`, an earlier state of this source, changed so that the last step's samples are left out."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; with it, any number of ranks goes on as if there had been no interruption.

        Collective; the main process's is saved.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Objective(Protocol[Batch_contra]):
    """What is minimised: a pure function of the model and a batch."""

    def counts(self, batch: Batch_contra) -> Counts:
        """The denominators that this batch adds to the step's totals."""
        ...

    def loss(self, model: nn.Module, batch: Batch_contra, totals: Counts) -> tuple[Tensor, Metrics]:
        """This batch's share of the step's loss (scalar, attached to every trainable parameter), and metrics."""
        ...


@dataclass(frozen=True)
class LossOptions:
    """What next-token objectives add to plain cross-entropy."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0


Evaluate = Callable[[nn.Module, Callable[[], bool]], dict[str, Any] | None]
"""(model in eval mode, whether any rank was asked to stop) -> numbers, `eval_loss` among them; None if stopped.

`report`, if there is one, is a tree of more numbers, which goes to a file of its own.
"""


class Ranks(Protocol):
    """The processes that train together, and their collectives; the runtime is one."""

    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype  # that training computes in

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        """Each value summed over ranks."""
        ...

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's values, in the order of ranks; equally many on each."""
        ...

    def gather_to_main(self, values: Tensor) -> list[Tensor]:
        """Every rank's values, (elements,), as many as each has, on the main process; none on the others."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        ...

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        """With the module's weights whole, to be called as a plain one, as often as this rank needs."""
        ...


class TokenLoss(NamedTuple):
    """What a causal LM with its loss inside returns: sums over the trained tokens of a microbatch, scalars."""

    objective: Tensor  # cross-entropy with label smoothing and z-loss; differentiable
    cross_entropy: Tensor  # plain, in nats; not differentiable
