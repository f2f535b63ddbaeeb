"""`rollout.mask_truncated`: the loss without responses that no stop token ended, by hand; and what warns of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from rollout_fixtures import OneOfSeveral, OneRank, roles, source_of, take
from torch import Tensor

from llmtrain.config.rl import PolicyConfig, RolloutConfig
from llmtrain.objectives.policy import PolicyObjective
from llmtrain.rollout.engine import Generated
from llmtrain.rollout.experience import ExperienceBuilder
from llmtrain.rollout.notices import Notices
from llmtrain.rollout.packing import Episode

LENGTHS = (3, 2, 4, 1, 2, 3)
STOPPED = (True, False, True, True, False, True)
SCORES = torch.tensor([1.0, 2.0, 0.0, 3.0, -1.0, 0.5])
GROUP = {"group_mean": 2, "dr_grpo": 2, "rloo": 2}


def episodes(stopped: Sequence[bool] = STOPPED) -> list[Episode]:
    made = []
    for number, (length, ended) in enumerate(zip(LENGTHS, stopped, strict=True)):
        response = Generated([(5 * number + place) % 20 for place in range(length)], [-1.0] * length, ended)
        made.append(Episode(number, (1, 2 + number), response))
    return made


def built(policy: dict[str, Any], stopped: Sequence[bool] = STOPPED, *, masked: bool = True) -> tuple[Any, Any, Any]:
    """The packs of `episodes`, three in each, the configuration and the module that reads them."""
    config = PolicyConfig.model_validate(policy)
    made, module = roles(config.has_critic)
    if module.value_head is not None:
        torch.nn.init.normal_(module.value_head.weight, std=0.3)
    rollout = RolloutConfig(
        rewards=["length"], samples_per_prompt=GROUP.get(config.advantage, 1), mask_truncated=masked
    )
    builder = ExperienceBuilder(made, config, rollout, OneRank(), gives_values=False)
    return builder.build(episodes(stopped), [[0, 1, 2], [3, 4, 5]], SCORES, config.kl_coef), config, module


def loss_of(packs: Sequence[Any], config: PolicyConfig, module: Any) -> float:
    objective = PolicyObjective(config, max_response_tokens=4)
    counts = [objective.counts(pack) for pack in packs]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    with torch.no_grad():
        return sum(float(objective.loss(module, pack, totals)[0]) for pack in packs)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant_length"])
def test_the_loss_is_that_of_the_responses_that_ended_by_hand(aggregation: str) -> None:
    """RLOO of groups of two: the advantage of a score is its distance to the other one, that of a cut response too."""
    found, config, module = built({"advantage": "rloo", "aggregation": aggregation, "kl_coef": 0.0})
    others = SCORES.view(-1, 2).flip(1).flatten()
    advantages = (SCORES - others).tolist()  # -1, 1, -3, 3, -1.5, 1.5
    kept = [number for number, ended in enumerate(STOPPED) if ended]
    tokens, sequences = sum(LENGTHS[number] for number in kept), len(kept)
    expected = {  # every ratio is 1
        "token_mean": -sum(LENGTHS[number] * advantages[number] for number in kept) / tokens,
        "sequence_mean": -sum(advantages[number] for number in kept) / sequences,
        "constant_length": -sum(LENGTHS[number] * advantages[number] for number in kept) / (sequences * 4),
    }[aggregation]
    assert loss_of(found.packs, config, module) == pytest.approx(expected, abs=1e-6)
    assert [pack.sample_ids for pack in found.packs] == [(0, 2), (3, 5)]


@pytest.mark.parametrize("policy", [{}, {"advantage": "reinforce_pp"}, {"whiten": False, "kl_coef": 0.0}])
def test_without_groups_the_loss_is_that_of_a_rollout_without_the_cut_responses(policy: dict[str, Any]) -> None:
    found, config, module = built(policy)
    made, _ = roles(config.has_critic)
    kept = [episode for episode, ended in zip(episodes(), STOPPED, strict=True) if ended]
    builder = ExperienceBuilder(
        replace(made, trained=module), config, RolloutConfig(rewards=["length"]), OneRank(), gives_values=False
    )
    alone = builder.build(kept, [[0, 1], [2, 3]], SCORES[torch.tensor(STOPPED)], config.kl_coef)
    assert loss_of(found.packs, config, module) == pytest.approx(loss_of(alone.packs, config, module), abs=1e-6)
    for one, other in zip(found.packs, alone.packs, strict=True):
        for name, value in vars(one).items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(value, getattr(other, name), rtol=0, atol=1e-6)


def test_a_pack_of_which_all_is_cut_is_left_out() -> None:
    found, *_ = built({"advantage": "rloo"}, (False, False, False, True, True, False))
    assert found.numbers == [1] and [pack.sample_ids for pack in found.packs] == [(3, 4)]


def test_without_the_key_every_response_is_trained() -> None:
    found, *_ = built({"advantage": "rloo"}, masked=False)
    assert [pack.sample_ids for pack in found.packs] == [(0, 1, 2), (3, 4, 5)]


@pytest.mark.parametrize("policy", [{}, {"advantage": "reinforce_pp"}, {"advantage": "rloo", "kl_coef": 0.0}])
def test_a_rollout_of_which_all_is_cut_is_no_step_and_ends_a_run_that_only_has_such(policy: dict[str, Any]) -> None:
    found, *_ = built(policy, (False,) * 6)
    assert found.packs == []
    made, _ = roles(PolicyConfig.model_validate(policy).has_critic)
    size = GROUP.get(policy.get("advantage", ""), 1)
    source = source_of(made, policy=policy, samples_per_prompt=size, mask_truncated=True, stop_ids=())
    with pytest.raises(ValueError, match=r"mask_truncated: every response of 10 rollouts was cut"):
        source.next_step()


def test_the_steps_of_a_run_are_those_of_responses_that_ended() -> None:
    source = source_of(roles(False)[0], policy={"advantage": "reinforce_pp"}, mask_truncated=True, stop_ids=range(8))
    for _ in range(6):
        for batch in take(source):
            assert all(
                label in range(8)
                for label in batch.labels[batch.labels >= 0][
                    torch.tensor(batch.response_lengths).cumsum(0) - 1
                ].tolist()
            )


def notices_of(policy: str, **metrics: float) -> list[str]:
    lines: list[str] = []
    rollout = RolloutConfig(rewards=["length"], max_new_tokens=9)
    notices = Notices(PolicyConfig.model_validate({"advantage": policy}), rollout, lines.append)
    given = {
        "rollout_samples": 8.0,
        "rollout_terminated_ratio": 1.0,
        "rollout_score_std": 1.0,
        "rollout_score": 2.0,
    } | metrics
    for number in range(3):
        notices.look_at(number, given)
    return lines


@pytest.mark.parametrize(
    ("policy", "metrics", "said"),
    [
        ("gae", {"rollout_terminated_ratio": 0.0}, "no response ended by itself within rollout.max_new_tokens=9"),
        ("gae", {"rollout_terminated_ratio": 0.25}, "75% of the responses were cut at rollout.max_new_tokens=9"),
        ("group_mean", {"rollout_zero_variance_groups": 1.0}, "rewards give no gradient"),
        ("rloo", {"rollout_zero_variance_groups": 0.625}, "62% of the prompts all score the same"),
        ("reinforce_pp", {"rollout_score_std": 0.0}, "all responses score 2"),
        ("gae", {"rollout_unscored": 0.5}, "50% of the responses have no score"),
    ],
)
def test_what_a_rollout_cannot_learn_from_is_said_once_with_its_share(
    policy: str, metrics: dict[str, float], said: str
) -> None:
    (line,) = notices_of(policy, **metrics)
    assert line.startswith("warning: rollout 0: ") and said in line


def test_an_ordinary_rollout_is_no_reason_to_warn() -> None:
    assert notices_of("rloo", rollout_terminated_ratio=0.9, rollout_zero_variance_groups=0.2) == []


@pytest.mark.parametrize("advantage", ["gae", "reinforce_pp", "rloo"])
def test_a_rank_of_which_all_is_cut_keeps_up_with_the_others(advantage: str) -> None:
    def on(rank: int, meeting: threading.Barrier) -> list[int]:
        config = PolicyConfig.model_validate({"advantage": advantage})
        rollout = RolloutConfig(rewards=["length"], samples_per_prompt=GROUP.get(advantage, 1), mask_truncated=True)
        builder = ExperienceBuilder(made[rank], config, rollout, OneOfSeveral(rank, meeting), gives_values=False)
        return builder.build(episodes((rank == 1,) * 6), [[0, 1, 2], [3, 4, 5]], SCORES, 0.0).numbers

    made = [roles(advantage == "gae")[0] for _ in range(2)]
    meeting = threading.Barrier(2, timeout=30)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(on, range(2), [meeting] * 2)) == [[], [0, 1]]
