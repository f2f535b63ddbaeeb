"""What a batch is: documents packed end to end, with the bounds that attention must not cross.

`data.loader` makes them, an objective reads them, nothing else touches them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

IGNORE_INDEX = -100


class KeptTokens(NamedTuple):
    """The tokens that each token of a response was drawn among (top-p, top-k): what is trained is drawn among them too.

    Four bytes each, end to end.
    """

    ids: Int32[Tensor, " kept"]
    counts: tuple[int, ...]  # of each token, at least 1, on the host

    def to(self, device: torch.device) -> KeptTokens:
        return KeptTokens(self.ids.to(device, non_blocking=True), self.counts)


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
    kept: KeptTokens | None = None  # for each label, where it is a response's; None: any token could be drawn
    prefix_lengths: ClassVar[tuple[int, ...]] = ()  # no segments share a prefix

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
            kept=None if self.kept is None else self.kept.to(device),
        )


def segment_ends(batch: PackedTokens | PreferencePairs) -> Int[Tensor, " segments"]:
    """Where the last token of each segment lies, on the host."""
    ends = torch.tensor(batch.segment_lengths).cumsum(0) - 1
    if batch.prefix_lengths:
        before = torch.tensor(batch.prefix_lengths).cumsum(0)
        ends += before.repeat_interleave(len(batch.segment_lengths) // len(batch.prefix_lengths))
    return ends


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
    """Pairs of one microbatch, laid end to end in one sequence, each as prefix, chosen, rejected.

    The *prefix* is what both documents of a pair begin with; the segments chosen and rejected go on from it, so their
    positions continue its own, and attention lets each see it. A prefix of no tokens leaves two whole documents. A
    label is the token that follows in its document, where that is one of the answers that are compared; the token
    before an answer is never in the prefix, so all labels lie in the segments, in the order chosen, rejected.
    """

    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    prefix_lengths: tuple[int, ...]  # tokens of each pair's prefix, on the host
    segment_lengths: tuple[int, ...]  # tokens of each document behind its prefix, at least one; two a pair, on the host
    answer_lengths: tuple[int, ...]  # labels of each segment, on the host
    weights: Float[Tensor, " pairs"]  # share of one comparison that a pair stands for: 1 / pairs of its ranking
    margins: Float[Tensor, " pairs"] | None  # by how much the chosen is better, as the rows say; None: no row does
    num_pairs: int  # pairs that are trained: none of an empty batch's
    sample_ids: tuple[int, ...]  # position in the sample order of each pack
    ref_logprobs: Float[Tensor, " answers"] | None = None  # of the reference, summed over each segment's labels
    kept: ClassVar[None] = None  # no label was drawn

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
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs.to(device, non_blocking=True),
        )


def empty_pairs() -> PreferencePairs:
    """A pair of two tokens each, without labels or weight: keeps ranks in step where one has fewer microbatches."""
    return PreferencePairs(
        input_ids=torch.zeros(4, dtype=torch.long),
        labels=torch.full((4,), IGNORE_INDEX),
        position_ids=torch.arange(2).repeat(2),
        prefix_lengths=(0,),
        segment_lengths=(2, 2),
        answer_lengths=(0, 0),
        weights=torch.zeros(1),
        margins=None,
        num_pairs=0,
        sample_ids=(),
        ref_logprobs=torch.zeros(2),
    )


@dataclass(frozen=True)
class JudgedAnswers:
    """Answers of one microbatch that are judged one by one, each behind its prompt, laid end to end.

    Positions, labels and bounds are as in PackedTokens; labels are the answers' tokens.
    """

    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    segment_lengths: tuple[int, ...]  # tokens of each answer with its prompt, on the host
    answer_lengths: tuple[int, ...]  # labels of each segment, on the host
    desirable: Bool[Tensor, " answers"]
    weights: Float[Tensor, " answers"]
    ref_logprobs: Float[Tensor, " answers"] | None  # of the reference, summed over each segment's labels
    sample_ids: tuple[int, ...]  # position in the sample order of each pack
    kl: Float[Tensor, ""] | None = None  # nats an answer, of the whole step; None: not known yet
    prefix_lengths: ClassVar[tuple[int, ...]] = ()  # no segments share a prefix
    kept: ClassVar[None] = None  # no label was drawn

    @property
    def num_tokens(self) -> int:
        """Tokens of samples."""
        return self.input_ids.numel() if self.sample_ids else 0

    def to(self, device: torch.device) -> JudgedAnswers:
        """The same batch on another device, copied without waiting where the memory allows it."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def empty_answers() -> JudgedAnswers:
    """An answer of two tokens without labels or weight: keeps ranks in step where one has fewer microbatches."""
    return JudgedAnswers(
        input_ids=torch.zeros(2, dtype=torch.long),
        labels=torch.full((2,), IGNORE_INDEX),
        position_ids=torch.arange(2),
        segment_lengths=(2,),
        answer_lengths=(0,),
        desirable=torch.ones(1, dtype=torch.bool),
        weights=torch.zeros(1),
        ref_logprobs=torch.zeros(1),
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
    kept: KeptTokens | None = None  # for each label; None: any token could be drawn
    trains: Literal["both", "policy", "critic"] = "both"
    prefix_lengths: ClassVar[tuple[int, ...]] = ()  # no segments share a prefix

    @property
    def num_tokens(self) -> int:
        """Tokens of samples."""
        return self.input_ids.numel() if self.sample_ids else 0

    def apart(self) -> tuple[Experience, Experience]:
        """The same as two microbatches, for the policy and for the critic; the second has no samples to count again."""
        return replace(self, trains="policy"), replace(self, trains="critic", sample_ids=())

    def to(self, device: torch.device) -> Experience:
        """The same batch on another device, copied without waiting where the memory allows it."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, kept=None if self.kept is None else self.kept.to(device), **moved)


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
