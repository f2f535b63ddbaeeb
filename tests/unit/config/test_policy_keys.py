"""Keys of a policy run that would do nothing with what the others ask for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llmtrain.config.load import validate
from llmtrain.config.recipes import PolicyStageConfig

GROUPS = {"policy": {"advantage": "rloo"}, "rollout": {"samples_per_prompt": 2}}


TREE: dict[str, dict[str, Any]] = {
    "run": {"dir": "runs/x"},
    "model": {"path": "m"},
    "data": {"train": "prompts.jsonl"},
    "policy": {},
    "rollout": {"rewards": [{"name": "length", "target": 5}]},
    "train": {"steps": 5, "microbatch_tokens": 2048},
}


def config_of(**sections: dict[str, Any]) -> PolicyStageConfig:
    return PolicyStageConfig.model_validate({name: TREE[name] | sections.get(name, {}) for name in TREE})


@pytest.mark.parametrize("advantage", ["group_mean", "dr_grpo", "rloo"])
def test_a_discount_is_refused_where_nothing_is_discounted(advantage: str) -> None:
    policy = {"advantage": advantage, "kl_coef": 0.0}
    with pytest.raises(ValueError, match=r"policy\.gamma does nothing without an advantage that discounts"):
        config_of(policy=policy | {"gamma": 0.9}, rollout=GROUPS["rollout"])
    assert config_of(policy=policy, rollout=GROUPS["rollout"]).policy.gamma == 1


@pytest.mark.parametrize("advantage", ["gae", "reinforce_pp"])
def test_a_discount_is_taken_where_rewards_are_discounted(advantage: str) -> None:
    assert config_of(policy={"advantage": advantage, "gamma": 0.9}).policy.gamma == 0.9


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {"sandbox": "require"}}, "rollout.sandbox does nothing without the reward code_tests"),
        (
            {"rollout": {"reward_seconds": 5.0}},
            "rollout.reward_seconds does nothing without a reward function of yours",
        ),
        (
            {"rollout": {"mask_truncated": True, "missing_eos_penalty": 1.0}},
            "rollout.missing_eos_penalty does nothing without responses that are cut in the loss",
        ),
    ],
)
def test_other_keys_without_an_effect_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config_of(**sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {"rewards": [None]}}, "rollout.rewards.0=None: give a text or a mapping"),
        (
            {"rollout": {"rewards": ["json_valid", 3]}, "adapter": {"kind": "lora", "layers": [None]}},
            "adapter.layers: give a text or a list of integers; rollout.rewards.1=3: give a text or a mapping",
        ),
        ({"adapter": {"kind": "lora", "target": 3}}, "adapter.target=3: give a text or a list of texts"),
    ],
)
def test_a_value_of_none_of_several_types_is_one_fault(sections: dict[str, Any], message: str) -> None:
    tree: dict[str, Any] = {"adapter": {}} | TREE
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        validate(PolicyStageConfig, {name: tree[name] | sections.get(name, {}) for name in tree})


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "rollout.rewards: no reward, so that nothing would be trained"),
        ([{"name": "json_valid", "weight": 0}], "rollout.rewards: only rewards of weight 0, which are logged alone"),
        ([{"name": "model", "path": "rm", "weight": 0.0}] * 2, "rollout.rewards: only rewards of weight 0"),
    ],
)
def test_rewards_that_train_nothing_are_refused(rewards: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config_of(rollout={"rewards": rewards})
    assert config_of(rollout={"rewards": [*rewards, "json_valid"]})


@pytest.mark.parametrize(
    "rollout",
    [
        {"sandbox": "require", "rewards": ["code_tests"]},
        {"reward_seconds": 5.0, "rewards": [{"name": "my.py:score"}]},
        {"mask_truncated": True, "missing_eos_penalty": 1.0, "samples_per_prompt": 2},
    ],
)
def test_they_are_taken_where_they_have_one(rollout: dict[str, Any]) -> None:
    policy = GROUPS["policy"] if "samples_per_prompt" in rollout else {}
    config_of(policy=policy, rollout=rollout)
