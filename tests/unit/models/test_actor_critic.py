"""The trunk runs once for a model whose logits are its own, and says what it says through the head."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_llama import tiny_llama
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from llmtrain.batch import Experience
from llmtrain.config.rl import PolicyConfig
from llmtrain.models.wrappers.actor_critic import ActorCritic, ValueHead
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.objectives.policy import PolicyObjective
from llmtrain.protocols import Metrics
from llmtrain.rollout.engine import Generated
from llmtrain.rollout.packing import Episode, ResponseFields, as_experience, pack_episodes

CPU = torch.device("cpu")
EPISODES = [Episode(0, (5, 6), Generated([7, 8], [], True)), Episode(1, (9,), Generated([4], [], False))]
BATCH = pack_episodes(EPISODES)


def model() -> LlamaForCausalLM:
    return tiny_llama(vocab_size=24, num_hidden_layers=1, max_position_embeddings=64)


@pytest.mark.parametrize("critic", ["none", "separate"])
def test_the_trunk_of_a_model_with_logits_of_its_own_runs_once(critic: str) -> None:
    checked = wrap_causal_lm(model(), "segments", 64, CPU)
    head, trunk = (ValueHead(16), copy.deepcopy(checked.model.base_model)) if critic == "separate" else (None, None)
    through_head = ActorCritic(checked, 0.9)(BATCH).logprobs
    calls: list[nn.Module] = []
    checked.model.base_model.register_forward_pre_hook(lambda called, _: calls.append(called))
    said = ActorCritic(CausalLMLoss(checked.model, "segments", form=None), 0.9, head, trunk)(BATCH)
    assert len(calls) == 1
    torch.testing.assert_close(said.logprobs, through_head)


def experience() -> Experience:
    numbers = torch.Generator().manual_seed(2)
    old_logprobs, ref_logprobs, advantages, old_values, returns = torch.randn(5, 3, generator=numbers)
    return as_experience(
        BATCH,
        EPISODES,
        ResponseFields(
            old_logprobs=old_logprobs - 3,
            ref_logprobs=ref_logprobs - 3,
            advantages=advantages,
            old_values=old_values,
            returns=returns,
        ),
    )


def gradients_and_metrics(
    module: ActorCritic, parts: tuple[Experience, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the sum of the parts' shares, whose totals are those that their counts add up to."""
    objective = PolicyObjective(
        PolicyConfig(entropy_coef=0.1, kl_placement="loss", kl_estimator="k3"), max_response_tokens=4
    )
    counts = [objective.counts(part) for part in parts]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    module.zero_grad()
    told: list[Metrics] = []
    for part in parts:
        share, metrics = objective.loss(module, part, totals)
        share.backward()
        told.append(metrics)
    sums = {name: torch.stack([part[name] for part in told if name in part]).sum() for name in set().union(*told)}
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return gradients, sums


def test_a_policy_and_its_critic_learn_the_same_split_as_together() -> None:
    checked = wrap_causal_lm(model(), "segments", 64, CPU)
    module = ActorCritic(checked, 0.9, ValueHead(16), copy.deepcopy(checked.model.base_model))
    nn.init.normal_(module.value_head.weight)
    together, told = gradients_and_metrics(module, (experience(),))
    split, split_metrics = gradients_and_metrics(module, experience().split_critic())
    assert together.keys() == split.keys() == dict(module.named_parameters()).keys()
    for name, gradient in together.items():
        torch.testing.assert_close(split[name], gradient, rtol=0, atol=0, msg=name)
    assert told.keys() == split_metrics.keys()
    for name, value in told.items():
        torch.testing.assert_close(split_metrics[name], value, msg=name)


def test_the_halves_of_a_microbatch_count_its_samples_and_tokens_once() -> None:
    whole = experience()
    halves = whole.split_critic()
    assert sum(half.num_tokens for half in halves) == whole.num_tokens
    assert [number for half in halves for number in half.sample_ids] == list(whole.sample_ids)
