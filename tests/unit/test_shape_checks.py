"""The tests' own guard: a tensor of the wrong shape is refused wherever llmtrain names its shape."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from llmtrain.batch import PackedTokens


def test_a_wrong_shape_is_refused() -> None:
    row = torch.zeros(4, dtype=torch.long)
    good = {"segment_lengths": (4,), "num_trained": 0, "sample_ids": ()}
    PackedTokens(input_ids=row, labels=row, position_ids=row, **good)  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError, match="labels"):
        PackedTokens(input_ids=row, labels=row[:3], position_ids=row, **good)  # type: ignore[arg-type]
