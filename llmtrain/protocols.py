"""The protocols between packages: where batches come from, what is minimised, which processes train.

One optimizer step is `loss = sum over microbatches and ranks of share`, where a share is already
divided by denominators counted over the whole step, so splitting a batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.system.typing import Array as Array
from llmtrain.system.typing import Report as Report

Batch = TypeVar("Batch")
Batch_contra = TypeVar("Batch_contra", contravariant=True)

Counts = Mapping[str, float]
"""Named denominators of one microbatch: `tokens`, always, and what else the loss divides by: pairs, sequences."""

ParamKind = Literal["hidden", "head", "embedding", "vector", "critic", "unreached"]
"""What a parameter does, by which its optimizer is chosen: a matrix between hidden states, the output head, an input
embedding, a norm or bias; any parameter that only the critic has; any that no document reaches, which stays."""


Sharding = Literal["none", "layers", "modules"]
"""What an engine gathers at a time of the weights that it shards: a decoder layer (FSDP2), or the own ones of a module,
around each of its calls, of which every rank has to make equally many (ZeRO-3)."""


@dataclass(frozen=True)
class MatrixLayout:
    """How a parameter holds the matrices that a model multiplies by; as it is: one, (out, in).

    The output rows are `groups` times the rows of all parts: with 2 groups of parts (3, 1), of one matrix rows 0 to 2
    and 4 to 6, of another rows 3 and 7.
    """

    transposed: bool = False  # (in, out)
    stacked: bool = False  # (matrices, out, in)
    groups: int = 1
    parts: tuple[int, ...] = ()  # output rows of each matrix in a group; empty: all are of one
    taking_turns: int = 1  # matrices whose columns take turns: the first column of each, the second of each, ...


class Matrices(NamedTuple):
    """What is known of a model's trained matrices."""

    layouts: Mapping[nn.Parameter, MatrixLayout]  # of the parameters that are not one matrix, (out, in)
    unknown: Sequence[str]  # names of modules that seem to hold several, nobody knows how


Metrics = Mapping[str, Tensor]
"""Shares (scalar, detached) whose sum over the microbatches and ranks of a step is the step's value."""


class StepBatch(Protocol):
    """What the loop asks of a microbatch."""

    @property
    def sample_ids(self) -> tuple[int, ...]: ...
    @property
    def num_tokens(self) -> int: ...  # input tokens of samples; 0 in an empty microbatch
    @property
    def num_attended(self) -> int: ...  # the tokens that each of them attends to, summed
    def to(self, device: torch.device) -> Any: ...


BatchType = TypeVar("BatchType", bound=StepBatch)


class Interrupted(Exception):
    """Some rank was asked to stop while a step's microbatches were being made: every rank stops making them."""


class SourceFailed(ValueError):
    """A step's microbatches cannot be made, on any rank: what is trained so far is saved, then the run stops."""


class BatchSource(Protocol[Batch]):
    """Where a step's microbatches come from: a stored dataset, or rollouts made on demand."""

    def next_step(self) -> list[Batch] | None:
        """This rank's microbatches of the present step, as many as on every other rank; None: finished.

        It does not move on: called again before `advance`, it returns the same step. Collective.
        Raises Interrupted, its state unchanged, if it was asked to stop while it made them; SourceFailed, on all ranks
        and with its state unchanged, if something that it needs has failed.
        """
        ...

    def advance(self) -> None:
        """Move on to the step after the one that `next_step` returned."""
        ...

    @property
    def epoch(self) -> float:
        """How often the training data has been seen, up to the present step: 1.5 halfway through the second time."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Values about the data of the last step that `next_step` returned, equal on all ranks; they join its row."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, from which any number of ranks resumes as if there had been no interruption.

        Collective; the main process's is saved.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


StateWithoutStep = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""(an earlier state of a source of stored batches) -> the same, with the present step's samples on its skip-list."""


class TrainedModule(nn.Module):
    """A model wrapped for training: what the recipes read of it, whatever its kind.

    A class and no Protocol because it must be a torch module too.
    """

    def trunks(self) -> list[PreTrainedModel]:
        """The `transformers` models inside, which are compiled and recompute activations."""
        raise NotImplementedError

    def parameters_by_kind(self) -> dict[ParamKind, list[nn.Parameter]]:
        """Its trainable parameters, each once."""
        raise NotImplementedError

    def facts(self) -> dict[str, str | bool]:
        """How it computes, for the run's record: the attention kernel, whether it holds all logits at once, `path`, one
        line on how documents run together, and `unreached`, one on parameters that not every document reaches."""
        raise NotImplementedError


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

Besides numbers there may be `summary`, the few of them that a person wants to see, in words; `report`, a tree of more
numbers, which goes to a separate file; and `samples`, answers of the model, rows of `samples.jsonl`.
"""


class Ranks(Protocol):
    """This process among those that train together, and their collectives; the runtime is one."""

    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype  # that training computes in

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        """Each value summed over ranks."""
        ...

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's values, in the order of ranks; each rank gives the same number of values."""
        ...

    def gather_to_main(self, values: Tensor) -> list[Tensor]:
        """Every rank's values, (elements,), of any length, on the main process; an empty list on the others."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        ...

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        """With the module's weights whole, so that each rank may call it as often as it needs. Collective on entry."""
        ...


class Balance(NamedTuple):
    """How evenly the experts of a mixture were used by a microbatch: a product of means, so no sum over its tokens."""

    loss: Tensor  # of all tokens, trained or not; differentiable
    coefficient: float  # its weight in the objective


class TokenLoss(NamedTuple):
    """What a causal LM with its loss inside returns: of the trained tokens of a microbatch, their sums (scalars)."""

    objective: Tensor  # cross-entropy with label smoothing and z-loss; differentiable
    cross_entropy: Tensor  # plain, in nats; not differentiable
    errors: Tensor  # tokens of which another one was the most likely; not differentiable
    token_losses: Tensor  # (trained tokens,) the parts of cross_entropy, each times its weight
    balance: Balance | None = None  # of a mixture of experts in training
