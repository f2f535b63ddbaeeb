"""What a batch is: documents packed end to end, with the bounds that attention must not cross.

`data.loader` makes them, an objective reads them, nothing else touches them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE_INDEX = -100


@dataclass(frozen=True)
class PackedTokens:
    """Packs of one microbatch, laid end to end in one sequence.

    A *segment* is a stretch of one document inside one pack: `position_ids` restart with each, and
    attention stays within it. `labels[t]` is the token that follows token t in its document, or
    IGNORE_INDEX where none is trained.
    """

    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    segment_lengths: tuple[int, ...]  # tokens of each segment, on the host: kernels are planned without a sync
    num_trained: int  # labels that are not IGNORE_INDEX
    sample_ids: tuple[int, ...]  # position in the sample order of each pack

    @property
    def num_tokens(self) -> int:
        """Tokens of samples."""
        return self.input_ids.numel() if self.sample_ids else 0

    def to(self, device: torch.device) -> PackedTokens:
        """The same batch on another device, copied without waiting where the memory allows it."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
        )


def empty_batch() -> PackedTokens:
    """Two tokens of which none is trained: keeps ranks in step where one has fewer microbatches."""
    return PackedTokens(
        input_ids=torch.zeros(2, dtype=torch.long),
        labels=torch.full((2,), IGNORE_INDEX),
        position_ids=torch.arange(2),
        segment_lengths=(2,),
        num_trained=0,
        sample_ids=(),
    )


@dataclass(frozen=True)
class PreferencePairs:
    """Pairs of one microbatch, laid end to end in one sequence: segments alternate chosen, rejected.

    Positions, labels and bounds are as in PackedTokens; labels are those of the answers that were compared.
    """

    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    segment_lengths: tuple[int, ...]  # tokens of each segment, two a pair, on the host
    weights: Float[Tensor, " pairs"]  # share of one comparison that a pair stands for: 1 / pairs of its ranking
    margins: Float[Tensor, " pairs"] | None  # by how much the chosen is better, as the rows say; None: no row does
    num_pairs: int  # pairs that are trained: none of an empty batch's
    sample_ids: tuple[int, ...]  # position in the sample order of each pack

    @property
    def num_tokens(self) -> int:
        """Tokens of samples."""
        return self.input_ids.numel() if self.num_pairs else 0

    def to(self, device: torch.device) -> PreferencePairs:
        """The same batch on another device, copied without waiting where the memory allows it."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            margins=None if self.margins is None else self.margins.to(device, non_blocking=True),
        )


def empty_pairs() -> PreferencePairs:
    """A pair of two tokens each, of weight zero: keeps ranks in step where one has fewer microbatches."""
    return PreferencePairs(
        input_ids=torch.zeros(4, dtype=torch.long),
        labels=torch.full((4,), IGNORE_INDEX),
        position_ids=torch.arange(2).repeat(2),
        segment_lengths=(2, 2),
        weights=torch.zeros(1),
        margins=None,
        num_pairs=0,
        sample_ids=(),
    )


@dataclass(frozen=True)
class Experience:
    """Episodes of one microbatch: each prompt with its response, laid end to end, and what was found out about them.

    Positions, labels and bounds are as in PackedTokens; labels are the responses' tokens. A response's last token is
    no input, since nothing is drawn behind it. Fields of response tokens lie end to end, in the order of the labels.
    """

    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    segment_lengths: tuple[int, ...]  # tokens of each episode, on the host
    response_lengths: tuple[int, ...]  # response tokens of each episode; () in an empty microbatch
    old_logprobs: Float[Tensor, " responses"]  # of the policy that the responses were drawn from
    ref_logprobs: Float[Tensor, " responses"] | None  # of the reference; None: no KL is asked for
    advantages: Float[Tensor, " responses"]
    old_values: Float[Tensor, " responses"] | None  # None: there is no critic
    returns: Float[Tensor, " responses"] | None
    sample_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of samples."""
        return self.input_ids.numel() if self.sample_ids else 0

    def to(self, device: torch.device) -> Experience:
        """The same batch on another device, copied without waiting where the memory allows it."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def empty_experience(*, has_reference: bool, has_critic: bool) -> Experience:
    """Two tokens without a response: keeps ranks in step."""
    nothing = torch.zeros(0)
    return Experience(
        input_ids=torch.zeros(2, dtype=torch.long),
        labels=torch.full((2,), IGNORE_INDEX),
        position_ids=torch.arange(2),
        segment_lengths=(2,),
        response_lengths=(),
        old_logprobs=nothing,
        ref_logprobs=nothing if has_reference else None,
        advantages=nothing,
        old_values=nothing if has_critic else None,
        returns=nothing if has_critic else None,
        sample_ids=(),
    )
