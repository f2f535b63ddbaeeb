"""A model's loss on single rows of data: what is usual to it, and what is not.

loss(row) = -1/n sum over its first n tokens of log p(token | all before it)
"""

from __future__ import annotations

import numpy as np

from llmtrain.data.quality.items import Item
from llmtrain.data.quality.sample import Sample
from llmtrain.data.quality.typical import ItemLoss, Losses
from llmtrain.eval.tasks.likelihood import Request, likelihoods
from llmtrain.eval.tasks.opened import opened_subject
from llmtrain.protocols import Report

MOST_ITEMS = 200
MOST_TOKENS = 256
FEWEST_TOKENS = 8
"""The mean of fewer tokens is mostly luck."""
READ_CHARS = 4_000
LN2 = float(np.log(2.0))


def item_losses(model: str, sample: Sample, report: Report) -> Losses:
    """The losses of up to `MOST_ITEMS` items, evenly over the sample. Raises ValueError as `opened_subject` does."""
    subject, _ = opened_subject(model, report)
    most_tokens = min(MOST_TOKENS, subject.max_tokens - 1)
    places = np.linspace(0, len(sample.items) - 1, min(MOST_ITEMS, len(sample.items))).round().astype(int).tolist()
    requests: list[Request] = []
    asked: list[tuple[Item, int]] = []  # with the bytes of its tokens
    for place in places:
        item = sample.items[place]
        ids = list(subject.tokenizer.encode(item.text[:READ_CHARS], add_special_tokens=False))[:most_tokens]
        if len(ids) < FEWEST_TOKENS:
            continue
        requests.append(Request([subject.first_id], ids))
        asked.append((item, len(str(subject.tokenizer.decode(ids)).encode(errors="surrogatepass"))))
    found = likelihoods(subject, [[request] for request in requests])
    assert found is not None, "nothing asks it to stop"
    losses = [
        ItemLoss(item, -each.logprob / each.num_tokens, -each.logprob / LN2 / max(1, num_bytes), each.num_tokens)
        for (item, num_bytes), (each,) in zip(asked, found, strict=True)
    ]
    losses.sort(key=lambda each: each.loss)
    return Losses(model, losses, most_tokens, len(places) - len(asked))
