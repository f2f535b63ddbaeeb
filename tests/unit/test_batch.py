"""Sampling masks: cut, joined and applied like the tokens that they are of; every field of experience has its kind."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from llmtrain.batch import (
    EXCLUDED_LOGIT,
    PER_EPISODE,
    PER_RESPONSE_TOKEN,
    PER_TOKEN,
    Experience,
    SamplingMask,
    attended_tokens,
)

MASK = SamplingMask(torch.tensor([3, 8, 8, 1, 2], dtype=torch.int32), (2, 1, 2))  # {3, 8}, {8}, {1, 2}


def lists(mask: SamplingMask) -> list[list[int]]:
    return [part.tolist() for part in mask.ids.split(mask.counts)]


def test_a_mask_is_cut_by_response_and_joined_again() -> None:
    first, empty, last = MASK.split([1, 0, 2])
    assert (lists(first), empty.counts, lists(last)) == ([[3, 8]], (), [[8], [1, 2]])
    whole = SamplingMask.concat([first, empty, last])
    assert whole is not None and lists(whole) == lists(MASK) and whole.ids.dtype == torch.int32


def test_responses_without_masks_have_none_together() -> None:
    assert SamplingMask.concat([None, None]) is None and SamplingMask.concat([]) is None


def test_a_part_is_the_mask_of_its_tokens() -> None:
    assert lists(MASK.part(slice(1, 3))) == [[8], [1, 2]] and lists(MASK.part(slice(0, 1))) == [[3, 8]]


def test_excluded_tokens_have_no_probability() -> None:
    logits = MASK.apply(torch.zeros(3, 10))
    probabilities = logits.softmax(-1)
    for row, allowed in zip(probabilities, lists(MASK), strict=True):
        assert row.nonzero()[:, 0].tolist() == allowed
        assert row[allowed].tolist() == [1 / len(allowed)] * len(allowed)
    assert float(logits.min()) == torch.tensor(EXCLUDED_LOGIT).item()


def test_every_field_of_experience_that_a_checkpoint_cuts_has_its_kind() -> None:
    kinds = [name for kind in (PER_EPISODE, PER_TOKEN, PER_RESPONSE_TOKEN) for name in Experience.field_names(kind)]
    assert sorted([*kinds, "sampling_mask", "trains"]) == sorted(field.name for field in fields(Experience))


@pytest.mark.parametrize(
    ("segments", "prefixes"),
    [((5,), ()), ((1, 1, 6), ()), ((1000, 1, 1, 1), ()), ((2, 3), (4,)), ((2, 3, 1, 5), (4, 0)), ((7, 7), (0,))],
)
def test_attended_tokens_are_those_that_a_mask_lets_through(
    segments: tuple[int, ...], prefixes: tuple[int, ...]
) -> None:
    """Each token sees itself, what is before it in its segment, and all of the prefix that it shares."""
    places = []  # of each token: (its prefix, its segment or None in the prefix), in the order of a batch
    per_prefix = len(segments) // max(len(prefixes), 1)
    for i, length in enumerate(segments):
        if prefixes and i % per_prefix == 0:
            places += [(i // per_prefix, None)] * prefixes[i // per_prefix]
        places += [(i // per_prefix if prefixes else None, i)] * length
    seen = 0
    for at, (prefix, segment) in enumerate(places):
        for other_prefix, other_segment in places[: at + 1]:
            seen += other_segment == segment if other_segment is not None else other_prefix == prefix
    assert attended_tokens(segments, prefixes) == seen
