"""Every token of a pack is in one row, and comes back to its place."""

from __future__ import annotations

import pytest
import torch

from llmtrain.models.paths.groups import Grouping, group_documents

CPU = torch.device("cpu")
LENGTHS = (40, 3, 33, 3, 1, 90, 89)


@pytest.mark.parametrize("grouping", ["padded", "equal", "fixed"])
def test_tokens_come_back_to_their_places(grouping: Grouping) -> None:
    groups = group_documents(LENGTHS, grouping, CPU)
    pack = torch.arange(sum(LENGTHS)) * 10
    parts = [pack[group.places].unflatten(0, (group.num_rows, group.length)) for group in groups.groups]
    assert torch.equal(groups.joined(parts), pack)
    for group, part in zip(groups.groups, parts, strict=True):
        for row, length in zip(part, group.lengths, strict=True):
            assert torch.equal(row[:length], torch.arange(length) * 10 + row[0])
            assert (row[length:] == row[length - 1]).all()


def test_who_is_beside_whom() -> None:
    def lengths(grouping: Grouping) -> list[tuple[int, ...]]:
        return [group.lengths for group in group_documents(LENGTHS, grouping, CPU).groups]

    assert lengths("padded") == [(90, 89), (40, 33), (3, 3, 1)]
    assert lengths("equal") == [(90,), (89,), (40,), (33,), (3, 3), (1,)]
    assert lengths("fixed") == [(90, 89, 40, 33), (3, 3, 1), (1,), (1,)]
    assert group_documents(LENGTHS, "padded", CPU).num_computed == 180 + 80 + 9


def test_one_long_document_does_not_stretch_many_short_ones() -> None:
    groups = group_documents((4000, *[20] * 200, 300, 1), "fixed", CPU)
    assert [(group.num_rows, group.length) for group in groups.groups] == [(1, 4000), (1, 300), (200, 20), (1, 1)]
