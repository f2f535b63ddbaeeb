"""What is read outside of training is read in the precision of training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmtrain.system.precision import training_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("weights", "dtype", "casts"),
    [
        (torch.float32, torch.float32, False),
        (torch.float32, torch.bfloat16, True),
        (torch.bfloat16, torch.bfloat16, False),  # an engine has cast them
        (torch.bfloat16, torch.float32, False),
    ],
)
def test_autocast_is_on_where_weights_are_not_in_the_type_of_training(
    weights: torch.dtype, dtype: torch.dtype, casts: bool
) -> None:
    with training_precision(nn.Linear(2, 2).to(weights), CPU, dtype):
        assert torch.is_autocast_enabled("cpu") is casts
