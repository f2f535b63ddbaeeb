"""Chunks of tokens whose logits are in memory at a time, and the products that their gradients are made of."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK_ELEMENTS = 2**20  # logits of a chunk: 4 MB in fp32 stay in a CPU's cache
CUDA_CHUNK_ELEMENTS = 2**27  # enough to keep a GPU busy
MIN_CHUNK_TOKENS = 128  # larger for a large vocabulary, and yet faster: products of fewer tokens are slow


def chunks(hidden: Float[Tensor, "tokens hidden"], weight: Float[Tensor, "vocab hidden"]) -> list[slice]:
    """The tokens of each chunk of logits."""
    elements = CUDA_CHUNK_ELEMENTS if hidden.device.type == "cuda" else CHUNK_ELEMENTS
    length = max(MIN_CHUNK_TOKENS, elements // weight.shape[0])
    return [slice(start, start + length) for start in range(0, hidden.shape[0], length)]


def gradient_precision(hidden: Tensor) -> AbstractContextManager[object]:
    """Autocast as it is, but not in fp16: these products come before the loss scale, and would over- or underflow."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def add_product(
    total: Float[Tensor, "rows columns"], left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]
) -> None:
    """total += left @ right, in autocast's type; without a copy of the product if all have one type."""
    in_place = left.dtype == right.dtype == total.dtype and not torch.is_autocast_enabled(total.device.type)
    if in_place:
        total.addmm_(left, right)
    else:
        total += left @ right
