"""Documents as rows of a batch, for a model that cannot run them end to end: a plain `transformers` forward.

Padding is on the right, so no document sees any of it: there is no mask, and attention takes its fast path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmtrain.models.paths.groups import Grouping, Groups, group_documents

PADDED: Mapping[str, Grouping] = {"padded": "padded", "fixed": "fixed"}
"""Kernels whose rows have padding -> how documents are grouped for them."""


class Lengths(Protocol):
    """What the share of padding reads of a microbatch."""

    @property
    def segment_lengths(self) -> tuple[int, ...]: ...


def padding_share(batches: Sequence[Lengths], grouping: Grouping) -> float:
    """The share of padding in the rows of some microbatches."""
    groups = [group_documents(batch.segment_lengths, grouping, torch.device("cpu")) for batch in batches]
    computed = sum(each.num_computed for each in groups)
    return 1 - sum(each.num_tokens for each in groups) / computed if computed else 0.0


class Rows(NamedTuple):
    """The documents of a microbatch as rows."""

    input_ids: Int[Tensor, " tokens"]  # of the pack
    groups: Groups

    @classmethod
    def of(cls, input_ids: Int[Tensor, " tokens"], lengths: tuple[int, ...], grouping: Grouping) -> Rows:
        """Rows of documents end to end."""
        return cls(input_ids, group_documents(lengths, grouping, input_ids.device))

    def run(self, forward: Callable[..., Any]) -> list[Any]:
        """The outputs of a model's forward for each group."""
        calls = []
        for group in self.groups.groups:
            ids = self.input_ids[group.places].unflatten(0, (group.num_rows, group.length))
            calls.append(forward(input_ids=ids, use_cache=False))
        return calls

    def joined(self, parts: list[Float[Tensor, "_ _ ..."]]) -> Float[Tensor, "tokens ..."]:
        """Outputs of the groups -> of the tokens, in the order of the pack."""
        return self.groups.joined(parts)
