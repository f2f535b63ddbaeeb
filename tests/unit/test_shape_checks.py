"""The tests' own guard: a tensor of the wrong shape is refused wherever llmtrain names its shape."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from llmtrain.batch import PackedTokens
from llmtrain.objectives.policy_losses import per_token


def test_a_field_of_the_wrong_shape_is_refused() -> None:
    row = torch.zeros(4, dtype=torch.long)
    good = {"segment_lengths": (4,), "num_trained": 0, "sample_ids": ()}
    PackedTokens(input_ids=row, labels=row, position_ids=row, **good)  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError, match="labels"):
        PackedTokens(input_ids=row, labels=row[:3], position_ids=row, **good)  # type: ignore[arg-type]


def test_an_argument_of_the_wrong_shape_is_refused() -> None:
    assert per_token(torch.zeros(2), [1, 2]).tolist() == [0.0] * 3
    with pytest.raises(TypeCheckError, match="values"):
        per_token(torch.zeros(2, 1), [1, 2])
