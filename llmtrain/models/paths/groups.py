"""Which documents of a pack run side by side as rows, and the way of each token there and back.

Documents of 9, 2, 8 and 2 tokens, padded: the rows (9, 8) and (2, 2), with one token of padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

Grouping = Literal["padded", "equal", "fixed"]
"""`padded`: documents of about one length, padded to the longest; `equal`: of one length, no padding; `fixed`: as
`padded`, with so much of it that there are always FIXED_GROUPS, and every rank makes the same number of calls."""

SHORTEST_SHARE = 0.75  # of a group's length that its shortest document has: less, and padding costs more than a call
FIXED_GROUPS, FIXED_SHARE = 4, 0.25  # so with 4,096 tokens beside it, a document of 20 has a row of 64 at most
SPARE_TOKENS = 8  # documents this much shorter join anyway: a call costs more than that


@dataclass(frozen=True)
class Group:
    """Rows of one length."""

    num_rows: int
    length: int  # tokens of each row
    places: Int64[Tensor, " tokens"]  # of each row's tokens in the pack; padding repeats the row's last token
    lengths: tuple[int, ...]  # of the documents, without padding


@dataclass(frozen=True)
class Groups:
    """All documents of a pack, each in one row of one group."""

    groups: tuple[Group, ...]
    back: Int64[Tensor, " tokens"]  # of each token of the pack, its place among the rows of all groups end to end

    @property
    def num_tokens(self) -> int:
        """Tokens of the pack."""
        return self.back.numel()

    @property
    def num_computed(self) -> int:
        """Tokens of all rows, padding included."""
        return sum(group.num_rows * group.length for group in self.groups)

    def joined(self, parts: Sequence[Shaped[Tensor, "_ _ ..."]]) -> Shaped[Tensor, "tokens ..."]:
        """Outputs of each group's rows -> of the pack's tokens, in its order."""
        flat = [part.flatten(0, 1) for part in parts]
        return (flat[0] if len(flat) == 1 else torch.cat(flat)).index_select(0, self.back)


def group_documents(lengths: Sequence[int], grouping: Grouping, device: torch.device) -> Groups:
    """Rows for documents end to end of these lengths; within a group they keep their order by length, then place."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    order = sorted(range(len(lengths)), key=lambda document: -lengths[document])
    members: list[list[int]] = []
    for document in order:
        is_last = grouping == "fixed" and len(members) == FIXED_GROUPS
        if members and (is_last or _joins(lengths[document], lengths[members[-1][0]], grouping)):
            members[-1].append(document)
        else:
            members.append([document])
    back = torch.empty(starts[-1], dtype=torch.long)
    groups, first = [], 0
    for documents in members:
        width = lengths[documents[0]]
        places = torch.empty(len(documents), width, dtype=torch.long)
        for row, document in enumerate(documents):
            start, length = starts[document], lengths[document]
            places[row] = torch.arange(width).clamp_(max=length - 1) + start
            back[start : start + length] = torch.arange(length) + first + row * width
        groups.append(
            Group(len(documents), width, places.flatten().to(device), tuple(lengths[each] for each in documents))
        )
        first += places.numel()
    while grouping == "fixed" and len(groups) < FIXED_GROUPS:  # a call whose output nothing reads
        groups.append(Group(1, 1, torch.zeros(1, dtype=torch.long, device=device), (1,)))
    return Groups(tuple(groups), back.to(device))


def _joins(length: int, longest: int, grouping: Grouping) -> bool:
    """Whether a document joins a group."""
    if grouping == "padded":
        return length >= SHORTEST_SHARE * longest or longest - length <= SPARE_TOKENS
    return length == longest if grouping == "equal" else length >= FIXED_SHARE * longest
