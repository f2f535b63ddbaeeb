"""What a batch is: documents packed end to end, with the bounds that attention must not cross.

`data.loader` and `rollout` make batches, wrappers and objectives read them. All lengths are on the host, so kernels
are planned without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

IGNORE_INDEX = -100
EXCLUDED_LOGIT = -1e30  # no probability; times a probability of 0 it is 0, which minus infinity is not


@dataclass(frozen=True)
class SamplingMask:
    """For each response token the tokens that it could be sampled from (top-p, top-k); training renormalises over them.

    Few tokens of a vocabulary pass, so the mask is their ids, four bytes each, end to end. One token sampled from
    {3, 8} and a next one from {8} are the ids [3, 8, 8] with counts (2, 1).
    """

    ids: Int32[Tensor, " allowed"]
    counts: tuple[int, ...]  # allowed ids per response token, at least 1, on the host

    @classmethod
    def concat(cls, masks: Sequence[SamplingMask | None]) -> SamplingMask | None:
        """The masks of several responses end to end; None if they have none."""
        given = [mask for mask in masks if mask is not None]
        if not given:
            return None
        assert len(given) == len(masks)
        return cls(torch.cat([mask.ids for mask in given]), tuple(n for mask in given for n in mask.counts))

    def split(self, lengths: Sequence[int]) -> list[SamplingMask]:
        """The inverse of `concat`: a mask for each run of `lengths` response tokens."""
        ends = list(accumulate(lengths))
        counts = [self.counts[end - length : end] for length, end in zip(lengths, ends, strict=True)]
        ids = self.ids.split([sum(part) for part in counts])
        return [SamplingMask(part.clone(), of_part) for part, of_part in zip(ids, counts, strict=True)]

    def part(self, tokens: slice) -> SamplingMask:
        """The mask of some response tokens, next to each other, without a copy."""
        start, counts = sum(self.counts[: tokens.start]), self.counts[tokens]
        return SamplingMask(self.ids[start : start + sum(counts)], counts)

    def apply(self, logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens vocab"]:
        """Set the logits of excluded tokens to EXCLUDED_LOGIT, in place; returns the logits."""
        counts = torch.tensor(self.counts)
        rows = torch.arange(len(counts)).repeat_interleave(counts).to(logits.device)
        excluded = torch.ones_like(logits, dtype=torch.bool)
        excluded[rows, self.ids.long()] = False
        return logits.masked_fill_(excluded, EXCLUDED_LOGIT)

    def to(self, device: torch.device) -> SamplingMask:
        return SamplingMask(self.ids.to(device, non_blocking=True), self.counts)


Moving = TypeVar("Moving", "PackedTokens", "PreferencePairs", "LabelledAnswers", "Experience")


def _moved(batch: Moving, device: torch.device) -> Moving:
    """A batch on another device, every tensor of it, copied without waiting if the memory allows it."""
    moved: dict[str, Any] = {}
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            moved[name] = value.to(device, non_blocking=True)
        elif isinstance(value, SamplingMask):
            moved[name] = value.to(device)
    return replace(batch, **moved)


@dataclass(frozen=True)
class PackedTokens:
    """The packs of one microbatch, end to end in one sequence.

    A *segment* is a stretch of one document inside one pack: `position_ids` restart with each, and
    attention stays within it. `labels[t]` is the token that follows token t in its document, or
    IGNORE_INDEX if it is not trained on.
    """

    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    segment_lengths: tuple[int, ...]  # tokens of each segment, on the host: kernels are planned without a sync
    num_trained: int  # labels that are not IGNORE_INDEX
    sample_ids: tuple[int, ...]  # position in the sample order of each pack
    sampling_mask: SamplingMask | None = None  # of the labels, if they are responses; None: no token was excluded
    label_weights: Float[Tensor, " tokens"] | None = None  # of each label in the loss, 0 without a label; None: 1
    prefix_lengths: ClassVar[tuple[int, ...]] = ()  # no segments share a prefix

    @property
    def num_tokens(self) -> int:
        """Tokens of samples."""
        return self.input_ids.numel() if self.sample_ids else 0

    @property
    def total_weight(self) -> float:
        """The weights of all labels together: their number, unless rows weigh them."""
        return float(self.num_trained if self.label_weights is None else self.label_weights.double().sum())

    @property
    def num_attended(self) -> int:
        """The tokens that each token of samples attends to, summed."""
        return attended_tokens(self.segment_lengths) if self.sample_ids else 0

    def to(self, device: torch.device) -> PackedTokens:
        """The same batch on another device."""
        return _moved(self, device)


def attended_tokens(segment_lengths: Sequence[int], prefix_lengths: Sequence[int] = ()) -> int:
    """Summed over tokens, the tokens that each attends to, itself included: 1 + 2 + 3 of a segment of 3.

    Segments that share a prefix attend to it too: equally many segments per prefix, in order.
    """
    alone = sum(length * (length + 1) // 2 for length in (*segment_lengths, *prefix_lengths))
    per_prefix = len(segment_lengths) // max(len(prefix_lengths), 1)
    return alone + sum(
        length * prefix_lengths[i // per_prefix] for i, length in enumerate(segment_lengths) if prefix_lengths
    )


def segment_ends(batch: PackedTokens | PreferencePairs) -> Int[Tensor, " segments"]:
    """Where the last token of each segment lies, on the host."""
    ends = torch.tensor(batch.segment_lengths).cumsum(0) - 1
    if batch.prefix_lengths:
        before = torch.tensor(batch.prefix_lengths).cumsum(0)
        ends += before.repeat_interleave(len(batch.segment_lengths) // len(batch.prefix_lengths))
    return ends


def empty_batch() -> PackedTokens:
    """Two tokens without a label, for a rank that has fewer microbatches than another."""
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
    """The pairs of one microbatch, end to end in one sequence, each as prefix, chosen, rejected.

    The *prefix* is the start that both documents of a pair share. The segments chosen and rejected continue its
    positions and attend to it. With "Hi there" and "Hi you" as documents, the prefix is "Hi", the segments are "there"
    and "you". An empty prefix leaves two whole documents. Labels are the tokens of the compared answers; the token
    before an answer is never in the prefix, so all labels are in the segments, in the order chosen, rejected.
    """

    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    prefix_lengths: tuple[int, ...]  # tokens of each pair's prefix, on the host
    segment_lengths: tuple[int, ...]  # tokens of each document after its prefix, at least 1; two per pair, on the host
    answer_lengths: tuple[int, ...]  # labels of each segment, on the host
    weights: Float[Tensor, " pairs"]  # 1 / pairs of its ranking: the pairs of one ranking are one comparison
    margins: Float[Tensor, " pairs"] | None  # by which the chosen answer is better, from the rows; None: no row has one
    num_pairs: int  # pairs that are trained: none of an empty batch's
    sample_ids: tuple[int, ...]  # position in the sample order of each pack
    ref_logprobs: Float[Tensor, " answers"] | None = None  # of the reference, summed over each segment's labels
    sampling_mask: ClassVar[None] = None  # no label was sampled

    @property
    def num_tokens(self) -> int:
        """Tokens of samples."""
        return self.input_ids.numel() if self.num_pairs else 0

    @property
    def num_attended(self) -> int:
        """The tokens that each token of samples attends to, summed."""
        return attended_tokens(self.segment_lengths, self.prefix_lengths) if self.num_pairs else 0

    def to(self, device: torch.device) -> PreferencePairs:
        """The same batch on another device."""
        return _moved(self, device)


def empty_pairs() -> PreferencePairs:
    """A pair without labels or weight, for a rank that has fewer microbatches than another."""
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
class LabelledAnswers:
    """Single answers of one microbatch, each labelled desirable or not, each after its prompt, end to end.

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
    kl: Float[Tensor, ""] | None = None  # nats per answer, of the whole step; None: not computed yet
    prefix_lengths: ClassVar[tuple[int, ...]] = ()  # no segments share a prefix
    sampling_mask: ClassVar[None] = None  # no label was sampled

    @property
    def num_tokens(self) -> int:
        """Tokens of samples."""
        return self.input_ids.numel() if self.sample_ids else 0

    @property
    def num_attended(self) -> int:
        """The tokens that each token of samples attends to, summed."""
        return attended_tokens(self.segment_lengths) if self.sample_ids else 0

    def to(self, device: torch.device) -> LabelledAnswers:
        """The same batch on another device."""
        return _moved(self, device)


def empty_answers() -> LabelledAnswers:
    """An answer without labels or weight, for a rank that has fewer microbatches than another."""
    return LabelledAnswers(
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


PER_EPISODE, PER_TOKEN, PER_RESPONSE_TOKEN = ({"per": kind} for kind in ("episode", "token", "response token"))


@dataclass(frozen=True)
class Experience:
    """The episodes of one microbatch, each a prompt with its response, end to end, with what training needs of them.

    Positions, labels and bounds are as in PackedTokens; labels are the tokens of the responses. The last token of a
    response is no input, since nothing is sampled after it: the prompt [5, 6] with the response [7, 8] is the inputs
    [5, 6, 7] with the labels [-100, 7, 8]. Fields per response token are end to end, in the order of the labels.
    """

    input_ids: Int[Tensor, " tokens"] = field(metadata=PER_TOKEN)
    labels: Int[Tensor, " tokens"] = field(metadata=PER_TOKEN)
    position_ids: Int[Tensor, " tokens"] = field(metadata=PER_TOKEN)
    segment_lengths: tuple[int, ...] = field(metadata=PER_EPISODE)  # tokens of each episode, on the host
    response_lengths: tuple[int, ...] = field(metadata=PER_EPISODE)  # () in an empty microbatch
    old_logprobs: Float[Tensor, " responses"] = field(metadata=PER_RESPONSE_TOKEN)  # of the policy that sampled them
    ref_logprobs: Float[Tensor, " responses"] | None = field(metadata=PER_RESPONSE_TOKEN)  # None: no reference
    advantages: Float[Tensor, " responses"] = field(metadata=PER_RESPONSE_TOKEN)
    old_values: Float[Tensor, " responses"] | None = field(metadata=PER_RESPONSE_TOKEN)  # None: no critic
    returns: Float[Tensor, " responses"] | None = field(metadata=PER_RESPONSE_TOKEN)
    sample_ids: tuple[int, ...] = field(metadata=PER_EPISODE)
    sampling_mask: SamplingMask | None = None  # of the labels; None: no token was excluded
    trains: Literal["both", "policy", "critic"] = "both"
    prefix_lengths: ClassVar[tuple[int, ...]] = ()  # no segments share a prefix

    @classmethod
    def field_names(cls, kind: dict[str, str]) -> list[str]:
        """The fields of one kind: PER_EPISODE, PER_TOKEN or PER_RESPONSE_TOKEN."""
        return [each.name for each in fields(cls) if each.metadata == kind]

    @property
    def num_tokens(self) -> int:
        """Tokens of samples."""
        return self.input_ids.numel() if self.sample_ids else 0

    @property
    def num_attended(self) -> int:
        """The tokens that each token of samples attends to, summed."""
        return attended_tokens(self.segment_lengths) if self.sample_ids else 0

    def split_critic(self) -> tuple[Experience, Experience]:
        """The same as two microbatches, for the policy and for its critic; the second counts no sample again."""
        return replace(self, trains="policy"), replace(self, trains="critic", sample_ids=())

    def to(self, device: torch.device) -> Experience:
        """The same batch on another device."""
        return _moved(self, device)


def empty_experience(*, has_reference: bool, has_critic: bool) -> Experience:
    """Two tokens without a response, for a rank that has fewer microbatches than another."""
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
