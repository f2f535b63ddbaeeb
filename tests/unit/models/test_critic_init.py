"""A critic that starts as a reward model says of an answer's end what the reward model says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import write_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, PackedTokens
from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import TunedModelConfig
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.adapters.weight_sharing import shared_copy
from llmtrain.models.folders.adapter import export_adapter
from llmtrain.models.folders.kind import REWARD
from llmtrain.models.folders.model import ExportSpec, export_model
from llmtrain.models.folders.origin import Origin
from llmtrain.models.folders.reward import load_reward_model, open_classifier
from llmtrain.models.load import load_pretrained
from llmtrain.models.wrappers.actor_critic import ActorCritic, ValueHead
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.models.wrappers.critic_init import CriticStart, start_as_reward, start_critic
from llmtrain.models.wrappers.reward_model import RewardModel, pooling_pad_id, score_model

CPU = torch.device("cpu")
LORA: dict[str, Any] = {"kind": "lora", "rank": 4, "alpha": 8}
LENGTHS = (7, 12, 3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base"), spread=0.2)


def causal(base: Path) -> PreTrainedModel:
    return load_pretrained(TunedModelConfig(path=str(base)), AutoTokenizer.from_pretrained(base), max_seq_len=32)


def reward_folder(folder: Path, base: Path, adapter: dict[str, Any] | None) -> Path:
    """A reward model that was trained: weights that are not those it started from, on disk."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = causal(base)
    if adapter is not None:
        add_adapter(model, AdapterConfig(**adapter), (), 0)
    pad = pooling_pad_id(tokenizer, (tokenizer.eos_token_id,))
    module = RewardModel(score_model(model, TunedModelConfig(path=str(base)), pad_token_id=pad, seed=0), "segments")
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    weights = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    spec = ExportSpec(module.model.config, tokenizer, REWARD)
    if adapter is None:
        export_model(folder, weights, "", spec)
    else:
        own = replace(spec, origin=Origin("folder", str(base)), adapter=AdapterConfig(**adapter))
        export_adapter(folder, weights, "", own)
    return folder


@dataclass(frozen=True)
class Critic:
    head: ValueHead
    trunk: nn.Module | None
    module: ActorCritic


def critic_of(base: Path, adapter: dict[str, Any] | None, separate: bool) -> Critic:
    """Policy and critic as the policy stage makes them."""
    model = causal(base)
    trunk = None
    if separate:
        twin = shared_copy(model) if adapter is not None else AutoModelForCausalLM.from_pretrained(base)
        twin.set_attn_implementation(model.config._attn_implementation)
        if adapter is not None:
            add_adapter(twin, AdapterConfig(**adapter), (), 0)
        trunk = twin.base_model
    if adapter is not None:
        add_adapter(model, AdapterConfig(**adapter), (), 0)
    head = ValueHead(32)
    return Critic(head, trunk, ActorCritic(wrap_causal_lm(model, "segments", 64, CPU), 1.0, head, trunk).eval())


def documents() -> PackedTokens:
    """Documents whose last tokens are where values are asked for."""
    ids = torch.randint(0, 250, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[torch.tensor(LENGTHS).cumsum(0) - 1] = 5
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return PackedTokens(ids, labels, positions, LENGTHS, len(LENGTHS), ())


@torch.no_grad()
def values(critic: Critic) -> Tensor:
    said = critic.module(documents()).values
    assert isinstance(said, Tensor)
    return said


@torch.no_grad()
def scores(folder: Path) -> Tensor:
    found = load_reward_model(folder)[0](documents())
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize(
    ("of_reward", "of_policy"), [(None, None), (LORA, LORA), (LORA, None)], ids=["full", "lora", "lora into full"]
)
def test_a_critic_with_a_trunk_of_its_own_values_an_end_as_the_reward_model_scores_it(
    base: Path, tmp_path: Path, of_reward: dict[str, Any] | None, of_policy: dict[str, Any] | None
) -> None:
    folder = reward_folder(tmp_path / "reward", base, of_reward)
    critic = critic_of(base, of_policy, separate=True)
    found = open_classifier(folder)
    before = {name: weight.clone() for name, weight in found.model.state_dict().items()}
    start_critic(CriticStart(str(folder), 2.0, "here", found), critic.head, critic.trunk)
    after = found.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], weight) for name, weight in before.items())
    wanted = scores(folder)
    assert wanted.abs().min() > 0.01
    torch.testing.assert_close(values(critic), 2 * wanted, rtol=1e-5, atol=1e-6)


def test_a_head_on_the_policys_trunk_is_the_reward_models(base: Path, tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "reward", base, LORA)
    critic = critic_of(base, LORA, separate=False)
    start_as_reward(critic.head, None, load_reward_model(folder)[0].model, 0.5, "here")
    head = dict(load_reward_model(folder)[0].model.named_parameters())["score.modules_to_save.default.weight"]
    assert torch.equal(critic.head.weight, 0.5 * head) and not critic.head.bias.any()


@pytest.mark.parametrize(
    ("of_reward", "of_policy", "told"),
    [
        (None, LORA, "the critic is an adapter but the reward model was fully fine-tuned"),
        ({**LORA, "alpha": 16}, LORA, "has scale 4.0 in the reward model and 2.0 in the critic"),
        ({**LORA, "rank": 2, "alpha": 4}, LORA, "differs between the reward model and the critic"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    base: Path, tmp_path: Path, of_reward: dict[str, Any] | None, of_policy: dict[str, Any], told: str
) -> None:
    folder = reward_folder(tmp_path / "reward", base, of_reward)
    critic = critic_of(base, of_policy, separate=True)
    with pytest.raises(ValueError, match=told) as refused:
        start_as_reward(critic.head, critic.trunk, load_reward_model(folder)[0].model, 1.0, "policy.critic_init=reward")
    assert str(refused.value).startswith("policy.critic_init=reward: ") and "\n" not in str(refused.value)


def test_an_adapter_on_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "reward", base, LORA)
    other = write_model(tmp_path / "other", spread=0.1)
    critic = critic_of(other, LORA, separate=True)
    with pytest.raises(ValueError, match="the reward model has another base"):
        start_as_reward(critic.head, critic.trunk, load_reward_model(folder)[0].model, 1.0, "here")


def test_another_hidden_size_is_refused(base: Path, tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "reward", base, None)
    with pytest.raises(ValueError, match="a hidden size of 32, the policy of 16"):
        start_as_reward(ValueHead(16), None, load_reward_model(folder)[0].model, 1.0, "here")


def test_a_reward_model_is_known_again_whatever_its_base_drew_for_a_head(base: Path, tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "reward", base, LORA)
    known = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        known.append(base_facts(open_classifier(folder).model, whole=True))
    assert known[0] == known[1]
