"""What a batch is: documents packed end to end, with the bounds that attention must not cross.

`data.loader` makes them, an objective reads them, nothing else touches them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
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
