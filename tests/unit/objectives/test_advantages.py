"""Advantages worked out by hand, on responses of different lengths that lie end to end."""

import math
import statistics
from dataclasses import replace
from typing import get_args

import pytest
import torch

from llmtrain.config.rl import ADVANTAGES, AdvantageName
from llmtrain.objectives.advantages import (
    ADVANTAGE_FUNCTIONS,
    AdaptiveKl,
    Episodes,
    gae,
    group_mean,
    leave_one_out,
    moments,
    reinforce_plus_plus,
    shaped_rewards,
    signal_groups,
    whitened,
)

LENGTHS = (3, 1, 2)
REWARDS = [0.1, -0.2, 1.0, 0.7, -0.3, 0.5]
VALUES = [0.4, 0.3, 0.9, -0.1, 0.2, 0.6]
RESPONSES = [slice(0, 3), slice(3, 4), slice(4, 6)]


def alone(values: list[float]) -> list[float]:
    """Sums over the ranks of one process."""
    return values


def sums_to_go(terms: list[float], discount: float) -> list[float]:
    return [sum(discount**k * term for k, term in enumerate(terms[t:])) for t in range(len(terms))]


def expected_gae(gamma: float, gae_lambda: float) -> list[float]:
    """Equation 16 literally: the sum of later errors, response by response."""
    advantages = []
    for response in RESPONSES:
        rewards, values = REWARDS[response], [*VALUES[response], 0.0]
        errors = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(len(rewards))]
        advantages += sums_to_go(errors, gamma * gae_lambda)
    return advantages


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0)])
def test_gae_is_the_sum_of_later_errors_of_the_same_response(gamma: float, gae_lambda: float) -> None:
    advantages, _ = gae(torch.tensor(REWARDS), torch.tensor(VALUES), LENGTHS, gamma, gae_lambda)
    assert advantages.tolist() == pytest.approx(expected_gae(gamma, gae_lambda), abs=1e-6)


def test_gae_of_two_tokens_in_figures() -> None:
    advantages, returns = gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), (2,), 1.0, 0.5)
    assert advantages.tolist() == pytest.approx([(0.0 + 0.25 - 0.5) + 0.5 * (1.0 - 0.25), 1.0 - 0.25])
    assert returns.tolist() == pytest.approx([0.625, 1.0])


def test_gae_with_lambda_one_returns_the_discounted_rewards_whatever_the_values() -> None:
    _, returns = gae(torch.tensor(REWARDS), torch.tensor(VALUES), LENGTHS, 0.9, 1.0)
    assert returns.tolist() == pytest.approx([r for s in RESPONSES for r in sums_to_go(REWARDS[s], 0.9)], abs=1e-6)


def test_gae_of_a_response_does_not_depend_on_those_beside_it() -> None:
    rewards, values = torch.tensor(REWARDS), torch.tensor(VALUES)
    together, _ = gae(rewards, values, LENGTHS, 0.9, 0.8)
    apart = [
        gae(rewards[part], values[part], (length,), 0.9, 0.8)[0]
        for part, length in zip(RESPONSES, LENGTHS, strict=True)
    ]
    assert torch.equal(together, torch.cat(apart))


def test_gae_leaves_its_inputs_alone() -> None:
    rewards, values = torch.tensor(REWARDS), torch.tensor(VALUES)
    gae(rewards, values, LENGTHS, 0.9, 0.8)
    assert torch.equal(rewards, torch.tensor(REWARDS)) and torch.equal(values, torch.tensor(VALUES))


def test_gae_of_no_responses_is_empty() -> None:
    advantages, returns = gae(torch.zeros(0), torch.zeros(0), (), 1.0, 0.95)
    assert advantages.shape == returns.shape == (0,)


def test_group_mean_without_normalising_is_the_distance_to_the_mean() -> None:
    advantages = group_mean(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), 3, normalise=False)
    assert advantages.tolist() == pytest.approx([-2.0, -1.0, 3.0, -1.0, -1.0, 2.0])


def test_group_mean_normalised_is_in_sample_deviations_of_its_group() -> None:
    advantages = group_mean(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), 3, normalise=True)
    first, second = (statistics.stdev(group) + 1e-4 for group in ([1.0, 2.0, 6.0], [0.0, 0.0, 3.0]))
    assert advantages.tolist() == pytest.approx(
        [-2 / first, -1 / first, 3 / first, -1 / second, -1 / second, 2 / second]
    )


def test_a_group_of_equal_scores_has_no_advantage() -> None:
    assert group_mean(torch.tensor([0.5, 0.5]), 2, normalise=True).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("score", [0.1, 1234.567, -30000.0 / 7])
@pytest.mark.parametrize("size", [3, 5, 7])
def test_equal_scores_give_no_advantage_whatever_their_size(score: float, size: int) -> None:
    scores = torch.full((2 * size,), score)
    for advantages in (
        group_mean(scores, size, normalise=True),
        group_mean(scores, size, normalise=False),
        leave_one_out(scores, size),
    ):
        assert not advantages.any() and advantages.dtype == scores.dtype


def test_leave_one_out_compares_each_with_the_mean_of_the_others() -> None:
    advantages = leave_one_out(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), 3)
    assert advantages.tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 0 - 1.5, 0 - 1.5, 3 - 0])


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="use two or more"):
        leave_one_out(torch.tensor([1.0, 2.0]), 1)


def test_reinforce_plus_plus_whitens_the_discounted_rewards_over_all_tokens() -> None:
    advantages = reinforce_plus_plus(torch.tensor(REWARDS), LENGTHS, 0.9, alone)
    returns = [value for response in RESPONSES for value in sums_to_go(REWARDS[response], 0.9)]
    mean, deviation = statistics.mean(returns), statistics.stdev(returns)
    assert advantages.tolist() == pytest.approx([(value - mean) / deviation for value in returns], abs=1e-6)


def test_whitened_values_have_mean_zero_and_sample_variance_one() -> None:
    values = whitened(torch.tensor(REWARDS), moments(torch.tensor(REWARDS)), shift_mean=True)
    assert values.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert values.var().item() == pytest.approx(1.0, abs=1e-5)


def test_whitening_without_shift_keeps_the_mean() -> None:
    values = whitened(torch.tensor(VALUES), moments(torch.tensor(VALUES)), shift_mean=False)
    mean, deviation = statistics.mean(VALUES), statistics.stdev(VALUES)
    assert values.tolist() == pytest.approx([(value - mean) / deviation + mean for value in VALUES], abs=1e-6)


def test_whitening_in_parts_by_summed_moments_is_whitening_the_whole() -> None:
    values = torch.tensor(REWARDS) + 100
    parts = values[:1], values[1:]
    totals = [sum(figures) for figures in zip(*map(moments, parts), strict=True)]
    split = torch.cat([whitened(part, totals, shift_mean=True) for part in parts])
    torch.testing.assert_close(split, whitened(values, moments(values), shift_mean=True), rtol=0, atol=1e-6)


def test_whitening_a_single_token_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1: generate more"):
        whitened(torch.tensor([2.0]), moments(torch.tensor([2.0])), shift_mean=True)


def test_the_score_stands_on_the_last_token_and_the_kl_on_each() -> None:
    kl = torch.tensor([0.5, 0.0, 1.0, 2.0, -1.0, 3.0])
    rewards = shaped_rewards(torch.tensor([1.0, 2.0, -1.0]), kl, 0.1, LENGTHS)
    assert rewards.tolist() == pytest.approx([-0.05, 0.0, 1.0 - 0.1, 2.0 - 0.2, 0.1, -1.0 - 0.3])


def test_groups_with_signal_are_those_whose_scores_differ() -> None:
    scores = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert signal_groups(scores, 3).tolist() == [False, True, False]


def episodes(*, values: bool) -> Episodes:
    """Four responses in two groups, with scores 1, 3 and 2, 2 on their last tokens."""
    rewards = torch.tensor([0.0, 1.0, 3.0, 0.0, 0.0, 2.0, 2.0])
    return Episodes(rewards, torch.zeros(7) if values else None, (2, 1, 3, 1), 2, 1.0, 0.5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gae", [0.5, 1.0, 3.0, 0.5, 1.0, 2.0, 2.0]),
        ("group_mean", [x / (math.sqrt(2) + 1e-4) for x in (-1.0, -1.0, 1.0)] + [0.0] * 4),
        ("dr_grpo", [-1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
        ("rloo", [-2.0, -2.0, 2.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_an_advantage_by_name_is_one_number_a_token(name: str, expected: list[float]) -> None:
    advantages, _ = ADVANTAGE_FUNCTIONS[name](episodes(values=name == "gae"), alone)
    assert advantages.tolist() == pytest.approx(expected)


def test_reinforce_by_name_sums_its_moments_over_ranks() -> None:
    """Beside a rank with the same tokens, count and sums double, and only Bessel's correction changes."""
    doubled, _ = ADVANTAGE_FUNCTIONS["reinforce_pp"](
        episodes(values=False), lambda values: [2 * value for value in values]
    )
    single, _ = ADVANTAGE_FUNCTIONS["reinforce_pp"](episodes(values=False), alone)
    torch.testing.assert_close(doubled, single * math.sqrt((13 / 14) / (6 / 7)))


def test_the_configuration_and_the_advantages_agree() -> None:
    assert set(get_args(AdvantageName)) == set(ADVANTAGES) == set(ADVANTAGE_FUNCTIONS)
    for name, function in ADVANTAGE_FUNCTIONS.items():
        found = function(episodes(values=True), alone)
        assert (found.returns is not None) == ADVANTAGES[name].needs_critic
        if ADVANTAGES[name].needs_groups:
            with pytest.raises(ValueError, match="compares the samples of a prompt"):
                function(replace(episodes(values=True), group_size=1), alone)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.6, 0.1 * (1 + 0.1 * 0.02)), (60.0, 0.1 * (1 + 0.2 * 0.02)), (0.0, 0.1 * (1 - 0.2 * 0.02)), (6.0, 0.1)],
)
def test_the_kl_coefficient_follows_the_clipped_relative_error(kl: float, expected: float) -> None:
    adaptive = AdaptiveKl(kl_coef=0.1, target=6.0, horizon=400)
    adaptive.update(kl, num_samples=8)
    assert adaptive.kl_coef == pytest.approx(expected)


def test_the_kl_coefficient_goes_on_from_its_state() -> None:
    adaptive, resumed = (AdaptiveKl(kl_coef=0.1, target=6.0, horizon=400) for _ in range(2))
    adaptive.update(60.0, num_samples=8)
    resumed.load_state_dict(adaptive.state_dict())
    assert resumed.kl_coef == adaptive.kl_coef


def test_a_horizon_that_would_turn_the_coefficients_sign_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon of 10 samples is too short for rollouts of 64"):
        AdaptiveKl(kl_coef=0.1, target=6.0, horizon=10).update(0.0, num_samples=64)
