"""Documents in one pack, and the loss of each alone as `transformers` computes it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, PackedTokens

VOCAB = 96
LENGTHS = (7, 7, 1, 12, 4)
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in LENGTHS]


def packed(texts: list[torch.Tensor]) -> PackedTokens:
    labels = [torch.cat([text[1:], torch.tensor([IGNORE_INDEX])]) for text in texts]
    return PackedTokens(
        input_ids=torch.cat(texts),
        labels=torch.cat(labels),
        position_ids=torch.cat([torch.arange(len(text)) for text in texts]),
        segment_lengths=tuple(len(text) for text in texts),
        num_trained=sum(len(text) - 1 for text in texts),
        sample_ids=(0,),
    )


def stock_loss(model: PreTrainedModel, text: torch.Tensor) -> torch.Tensor:
    """The summed loss of one document as `transformers` computes it, with its eager attention."""
    if len(text) == 1:
        return model(input_ids=text[None]).logits.sum() * 0.0
    return model(input_ids=text[None], labels=text[None]).loss * (len(text) - 1)


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
