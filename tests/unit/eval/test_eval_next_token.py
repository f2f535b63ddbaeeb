"""Held-out loss per token: what its interval is made of."""

from __future__ import annotations

import torch

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.eval.next_token import document_sums


def test_each_document_is_one_cluster_and_one_without_trained_tokens_is_none() -> None:
    labels = torch.tensor([5, 6, IGNORE_INDEX, IGNORE_INDEX, 7, IGNORE_INDEX])
    batch = PackedTokens(
        input_ids=torch.arange(6),
        labels=labels,
        position_ids=torch.tensor([0, 1, 0, 1, 0, 1]),
        segment_lengths=(2, 2, 2),
        num_trained=3,
        sample_ids=(0,),
    )
    sums = document_sums(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), batch)
    first, last = (1, 3.0, 2, 9.0, 6.0, 4), (1, 4.0, 1, 16.0, 4.0, 1)  # count, loss, tokens, and their products
    assert sums.tolist() == [one + other for one, other in zip(first, last, strict=True)]
