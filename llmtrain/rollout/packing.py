"""Episodes -> packs of experience. An episode is a prompt with one response.

Packs are made once per rollout, and each belongs to one minibatch. Policy, critic and reference read exactly the packs
that the update trains on, so with recomputed old logprobs every ratio of the first minibatch is exactly 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llmtrain.batch import IGNORE_INDEX, Experience, PackedTokens, SamplingMask
from llmtrain.rollout.engine import Generated


@dataclass(frozen=True)
class Episode:
    """One sample that is trained on."""

    sample_id: int
    prompt_ids: tuple[int, ...]
    response: Generated

    @property
    def num_tokens(self) -> int:
        """Inputs: the last token of the response is only a label."""
        return len(self.prompt_ids) + len(self.response.response_ids) - 1


class ResponseFields(NamedTuple):
    """What training needs for each response token, of a rollout or of one pack; fields as in Experience."""

    old_logprobs: Float[Tensor, " responses"]
    ref_logprobs: Float[Tensor, " responses"] | None
    advantages: Float[Tensor, " responses"]
    old_values: Float[Tensor, " responses"] | None
    returns: Float[Tensor, " responses"] | None

    def split(self, lengths: Sequence[int]) -> list[ResponseFields]:
        """The fields of each pack; `lengths`: its response tokens."""
        columns = [[None] * len(lengths) if each is None else each.split(list(lengths)) for each in self]
        return [ResponseFields(*parts) for parts in zip(*columns, strict=True)]

    @classmethod
    def concat(cls, parts: Sequence[ResponseFields]) -> ResponseFields:
        """The fields of several responses end to end, of one at least."""
        columns = zip(*parts, strict=True)
        joined: Any = [None if column[0] is None else torch.cat(column) for column in columns]
        return cls(*joined)


def group_episodes(lengths: Sequence[int], minibatches: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of episodes in packs of at most `capacity` tokens, in order; a longer episode is a pack by itself.

    `minibatches`: the minibatch of each episode, equal ones next to each other; a pack is of one minibatch. Lengths
    (2, 2, 2, 2) of minibatches (0, 1, 1, 2) with capacity 10 are the packs [0], [1, 2], [3].
    """
    packs: list[list[int]] = []
    filled = 0
    for index, (length, minibatch) in enumerate(zip(lengths, minibatches, strict=True)):
        if not packs or filled + length > capacity or minibatches[packs[-1][-1]] != minibatch:
            packs.append([])
            filled = 0
        packs[-1].append(index)
        filled += length
    return packs


def pack_episodes(episodes: Sequence[Episode]) -> PackedTokens:
    """Episodes end to end, with the tokens of the responses as labels.

    The prompt [5, 6] with the response [7, 8] has the inputs [5, 6, 7] and the labels [-100, 7, 8].
    """
    inputs: list[int] = []
    labels: list[int] = []
    for episode in episodes:
        prompt, response = episode.prompt_ids, episode.response.response_ids
        inputs += [*prompt, *response[:-1]]
        labels += [IGNORE_INDEX] * (len(prompt) - 1) + list(response)
    lengths = [episode.num_tokens for episode in episodes]
    return PackedTokens(
        input_ids=torch.tensor(inputs),
        labels=torch.tensor(labels),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        segment_lengths=tuple(lengths),
        num_trained=sum(len(episode.response.response_ids) for episode in episodes),
        sample_ids=tuple(episode.sample_id for episode in episodes),
        sampling_mask=SamplingMask.concat([episode.response.sampling_mask for episode in episodes]),
    )


def as_experience(packed: PackedTokens, episodes: Sequence[Episode], of_responses: ResponseFields) -> Experience:
    """A pack of episodes with the fields of its response tokens."""
    return Experience(
        input_ids=packed.input_ids,
        labels=packed.labels,
        position_ids=packed.position_ids,
        segment_lengths=packed.segment_lengths,
        response_lengths=tuple(len(episode.response.response_ids) for episode in episodes),
        sample_ids=packed.sample_ids,
        sampling_mask=packed.sampling_mask,
        **of_responses._asdict(),
    )
