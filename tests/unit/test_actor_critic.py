"""The trunk runs once for a model whose logits are its own, and says what it says through the head."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llmtrain.models.actor_critic import ActorCritic, ValueHead
from llmtrain.models.lm_head import CausalLMLoss
from llmtrain.models.selfcheck import with_loss
from llmtrain.rollout.experience import Episode, pack_episodes

CPU = torch.device("cpu")
BATCH = pack_episodes([Episode(0, (5, 6), (7, 8), True), Episode(1, (9,), (4,), False)])


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=24,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    )


@pytest.mark.parametrize("critic", ["none", "separate"])
def test_the_trunk_of_a_model_with_logits_of_its_own_runs_once(critic: str) -> None:
    checked = with_loss(model(), "segments", 64, CPU)
    head, trunk = (ValueHead(16), copy.deepcopy(checked.model.base_model)) if critic == "separate" else (None, None)
    through_head = ActorCritic(checked, 0.9)(BATCH).logprobs
    calls: list[nn.Module] = []
    checked.model.base_model.register_forward_pre_hook(lambda called, _: calls.append(called))
    said = ActorCritic(CausalLMLoss(checked.model, "segments", True), 0.9, head, trunk)(BATCH)
    assert len(calls) == 1
    torch.testing.assert_close(said.logprobs, through_head)
