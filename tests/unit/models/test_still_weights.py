"""A model that writes to its own weights when it is called is refused: a checkpoint would hold others."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tiny_llama import tiny_llama
from transformers import PreTrainedModel, RwkvConfig, RwkvForCausalLM

from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.models.wrappers.still_weights import still_weights


def rwkv(rescale_every: int) -> RwkvForCausalLM:
    torch.manual_seed(0)
    shape = RwkvConfig(vocab_size=96, hidden_size=16, num_hidden_layers=3, rescale_every=rescale_every)
    return RwkvForCausalLM(shape)


@pytest.mark.parametrize(
    ("model", "is_refused"),
    [(rwkv(2), True), (rwkv(0), False), (rwkv(6), False), (tiny_llama(vocab_size=96), False)],
    ids=["rescaled", "never", "too few layers", "llama"],
)
def test_weights_that_evaluation_changes_are_refused(model: PreTrainedModel, is_refused: bool) -> None:
    told = r"rwkv: a call in evaluation changes its weights \(rwkv.blocks.2.attention.output.weight is one of 2\)"
    with pytest.raises(ValueError, match=told) if is_refused else nullcontext(), still_weights(model):
        wrap_causal_lm(model, "segments", 32, torch.device("cpu"))


def test_weights_that_are_no_numbers_count_as_the_same() -> None:
    model = tiny_llama(vocab_size=96)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with still_weights(model):
        pass
