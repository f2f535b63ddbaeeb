"""NEFTune: noise on the embeddings of instructions in training (Jain et al. 2023), document by document.

    embedding + uniform(-1, 1) * alpha / sqrt(tokens * width)

`tokens` are those of the document's segment, so that packing does not change how loud the noise is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmtrain.models.paths.rows import Rows
from llmtrain.models.trunk import Inputs


@contextmanager
def noisy_embeddings(
    model: PreTrainedModel, inputs: Inputs, segment_lengths: Sequence[int], alpha: float | None
) -> Iterator[None]:
    """Let a model's embedding give noise as well, for one call on `inputs` in here; None: it stays as it is.

    The noise is added to what the embedding puts out, whatever the model makes of the ids besides: handing it
    `inputs_embeds` instead would leave out, silently, what Gemma 3n looks up for each layer.
    """
    if alpha is None:
        yield
        return
    calls = iter([group.lengths for group in inputs.groups.groups] if isinstance(inputs, Rows) else [segment_lengths])

    def added(module: nn.Module, ids: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        add = add_noise_to_rows if isinstance(inputs, Rows) else add_noise
        return add(embedded, next(calls), alpha)

    hook = model.get_input_embeddings().register_forward_hook(added)
    try:
        yield
    finally:
        hook.remove()


def add_noise(
    embedded: Float[Tensor, "1 tokens hidden"], segment_lengths: Sequence[int], alpha: float
) -> Float[Tensor, "1 tokens hidden"]:
    """The embeddings with noise drawn from torch's generator of their device, which the loop seeds at each step."""
    lengths = torch.tensor(segment_lengths, device=embedded.device)
    scales = alpha / (lengths * embedded.shape[-1]).sqrt()  # (segments,)
    scale_of = scales.repeat_interleave(lengths, output_size=embedded.shape[1])  # (tokens,)
    noise = torch.empty_like(embedded, dtype=torch.float32).uniform_(-1, 1) * scale_of[:, None]
    return embedded + noise.to(embedded.dtype)


def add_noise_to_rows(
    embedded: Float[Tensor, "batch tokens hidden"], lengths: Sequence[int], alpha: float
) -> Float[Tensor, "batch tokens hidden"]:
    """The same for documents as rows, which may be padded; `lengths`: of each document."""
    scales = alpha / (torch.tensor(lengths, device=embedded.device) * embedded.shape[-1]).sqrt()  # (rows,)
    noise = torch.empty_like(embedded, dtype=torch.float32).uniform_(-1, 1) * scales[:, None, None]
    return embedded + noise.to(embedded.dtype)
