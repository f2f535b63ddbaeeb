"""Which differences of logprobs are only rounding."""

from __future__ import annotations

import torch

from llmtrain.eval.rounding import is_rounding


def test_a_sum_in_another_order_is_rounding_and_a_small_step_is_not() -> None:
    drawn = torch.Generator().manual_seed(0)
    tokens = -3 * torch.rand((200, 300), generator=drawn)
    reference, lengths = tokens.sum(1), [300] * 200
    assert not torch.equal(other := tokens.flip(1).cumsum(1)[:, -1], reference)
    assert is_rounding(other, reference, lengths).all()
    assert not is_rounding((tokens * (1 + 1e-5)).sum(1), reference, lengths).any()


def test_the_rounding_of_a_certain_answer_is_that_of_its_logits() -> None:
    reference, lengths = torch.tensor([-1e-4]), [10]
    assert is_rounding(reference + 3e-6, reference, lengths).all()
    assert not is_rounding(reference - 1e-4, reference, lengths).any()
