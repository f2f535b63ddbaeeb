"""Responses -> experience: episodes in packs, and what each pack is trained on.

An episode is a prompt with its response, less the last token, behind which nothing is drawn. Packs are made once a
rollout, each of one minibatch: policy, critic and reference read them in the very shape that the update does, so that
on the first minibatch of the first pass every ratio is exactly 1, unless logprobs are those of the draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmtrain.batch import IGNORE_INDEX, Experience, KeptTokens, PackedTokens


@dataclass(frozen=True)
class Episode:
    """One sample: what was asked and what was answered."""

    sample_id: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    stopped: bool  # by a stop token, not by its budget
    logprobs: tuple[float, ...] = ()  # of the response's tokens as they were drawn, in nats
    kept: KeptTokens | None = None  # what they were drawn among; None: any token
    values: tuple[float, ...] = ()  # of the states that they were drawn in, where a value head read them then

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids) - 1


def group_episodes(lengths: Sequence[int], minibatches: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of episodes in packs of at most `capacity` tokens, in order; a longer episode is a pack by itself.

    `minibatches`: that of each episode, those of one next to each other; no pack is of two.
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
    """Episodes end to end, with the responses' tokens as labels."""
    inputs: list[int] = []
    labels: list[int] = []
    lengths: list[int] = []
    for episode in episodes:
        whole = (*episode.prompt_ids, *episode.response_ids)
        inputs += whole[:-1]
        labels += [IGNORE_INDEX] * (len(episode.prompt_ids) - 1) + list(episode.response_ids)
        lengths.append(episode.num_tokens)
    return PackedTokens(
        input_ids=torch.tensor(inputs),
        labels=torch.tensor(labels),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        segment_lengths=tuple(lengths),
        num_trained=sum(len(episode.response_ids) for episode in episodes),
        sample_ids=tuple(episode.sample_id for episode in episodes),
        kept=join_kept([episode.kept for episode in episodes if episode.kept is not None]),
    )


def join_kept(parts: Sequence[KeptTokens]) -> KeptTokens | None:
    """What the tokens of several responses were drawn among, end to end; None of none."""
    if not parts:
        return None
    return KeptTokens(torch.cat([part.ids for part in parts]), tuple(n for part in parts for n in part.counts))


def as_experience(
    packed: PackedTokens,
    episodes: Sequence[Episode],
    *,
    old_logprobs: Float[Tensor, " responses"],
    ref_logprobs: Float[Tensor, " responses"] | None,
    advantages: Float[Tensor, " responses"],
    old_values: Float[Tensor, " responses"] | None,
    returns: Float[Tensor, " responses"] | None,
) -> Experience:
    """A pack with what was found out about its response tokens."""
    return Experience(
        input_ids=packed.input_ids,
        labels=packed.labels,
        position_ids=packed.position_ids,
        segment_lengths=packed.segment_lengths,
        response_lengths=tuple(len(episode.response_ids) for episode in episodes),
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        advantages=advantages,
        old_values=old_values,
        returns=returns,
        sample_ids=packed.sample_ids,
        kept=packed.kept,
    )
