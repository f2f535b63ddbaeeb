"""Whether a model leaves its weights as they are when it is called.

RWKV scales some of them down in the first forward of evaluation, and up again in the next of training: what a
checkpoint holds then depends on what ran before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

SAMPLED = 64  # values of each parameter, spread over it


@contextmanager
def still_weights(model: PreTrainedModel) -> Iterator[None]:
    """A context in which a model is called. Raises ValueError after it if its weights are others then."""
    before = _samples(model)
    yield
    after = _samples(model)
    changed = [name for name, values in before.items() if name in after and not torch.equal(values, after[name])]
    if changed:
        raise ValueError(
            f"{model.config.model_type}: a call in evaluation changes its weights ({changed[0]} is one of "
            f"{len(changed)}), so a checkpoint would hold others than were trained; some architectures take "
            "model.config.rescale_every=0"
        )


def _samples(model: PreTrainedModel) -> dict[str, Tensor]:
    """The bytes of some values of each parameter, on the CPU."""
    found = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().reshape(-1)
        values = values[:: max(1, len(values) // SAMPLED)]
        kept = torch.empty(len(values), dtype=values.dtype)
        kept.copy_(values)
        found[name] = kept.view(torch.uint8)
    return found
