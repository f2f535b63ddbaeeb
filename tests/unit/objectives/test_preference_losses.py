"""Losses over preferences worked out by hand on two pairs."""

import math
from dataclasses import replace

import pytest
import torch

from llmtrain.config.rl import PREFERENCE_LOSSES, PreferenceLossName
from llmtrain.objectives.preference_losses import (
    PAIR_LOSS_FUNCTIONS,
    PairLogprobs,
    PreferenceOptions,
    bradley_terry,
    cdpo,
    dpo,
    ipo,
    kto,
    orpo,
    simpo,
)

# The log ratios of the chosen are 1 and -2, of the rejected -0.5 and -1, their differences 1.5 and -1.
PAIRS = PairLogprobs(
    chosen=torch.tensor([-3.0, -6.0]),
    rejected=torch.tensor([-4.5, -5.0]),
    ref_chosen=torch.tensor([-4.0, -4.0]),
    ref_rejected=torch.tensor([-4.0, -4.0]),
    chosen_lengths=torch.tensor([2.0, 4.0]),
    rejected_lengths=torch.tensor([5.0, 2.0]),
)


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_bradley_terry_is_the_surprise_that_the_chosen_won() -> None:
    losses = bradley_terry(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0]))
    assert losses.tolist() == pytest.approx([-log_sigmoid(0.5), -log_sigmoid(-2.0)])


def test_bradley_terry_asks_for_the_margin() -> None:
    losses = bradley_terry(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0]), margins=torch.tensor([3.0, 0.0]))
    assert losses.tolist() == pytest.approx([-log_sigmoid(-2.5), -log_sigmoid(-2.0)])


def test_bradley_terry_centres_scores_around_zero() -> None:
    losses = bradley_terry(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0]), centering=0.1)
    assert losses.tolist() == pytest.approx([-log_sigmoid(0.5) + 0.1 * 1.5**2, -log_sigmoid(-2.0) + 0.1 * 2.0**2])


def test_bradley_terry_weighs_the_whole_loss_of_a_pair() -> None:
    scores = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0])
    losses = bradley_terry(*scores, weights=torch.tensor([0.5, 0.0]), centering=0.1)
    assert losses.tolist() == pytest.approx([0.5 * (-log_sigmoid(0.5) + 0.1 * 1.5**2), 0.0])


def test_dpo_compares_the_log_ratios() -> None:
    result = dpo(PAIRS, PreferenceOptions(beta=0.1))
    assert result.losses.tolist() == pytest.approx([-log_sigmoid(0.15), -log_sigmoid(-0.1)])
    assert result.chosen_rewards.tolist() == pytest.approx([0.1, -0.2])
    assert result.rejected_rewards.tolist() == pytest.approx([-0.05, -0.1])


def test_cdpo_is_dpo_where_some_labels_are_wrong() -> None:
    result = cdpo(PAIRS, PreferenceOptions(beta=0.1, label_smoothing=0.2))
    expected = [-0.8 * log_sigmoid(x) - 0.2 * log_sigmoid(-x) for x in (0.15, -0.1)]
    assert result.losses.tolist() == pytest.approx(expected)


def test_cdpo_without_smoothing_is_dpo() -> None:
    options = PreferenceOptions(beta=0.1)
    torch.testing.assert_close(cdpo(PAIRS, options).losses, dpo(PAIRS, options).losses)


def test_ipo_aims_at_a_difference_of_log_ratios_a_token() -> None:
    result = ipo(PAIRS, PreferenceOptions(beta=0.5))
    assert result.losses.tolist() == pytest.approx([(1 / 2 + 0.5 / 5 - 1) ** 2, (-2 / 4 + 1 / 2 - 1) ** 2])


def test_orpo_adds_the_loss_of_the_odds_ratio_to_the_likelihood() -> None:
    result = orpo(PAIRS, PreferenceOptions(beta=0.25))
    chosen, rejected = [-3.0 / 2, -6.0 / 4], [-4.5 / 5, -5.0 / 2]
    expected = [
        -c - 0.25 * log_sigmoid(log_odds(math.exp(c)) - log_odds(math.exp(r)))
        for c, r in zip(chosen, rejected, strict=True)
    ]
    assert result.losses.tolist() == pytest.approx(expected)


def test_orpo_is_finite_at_answers_of_probability_one() -> None:
    chosen = torch.zeros(2, requires_grad=True)
    orpo(replace(PAIRS, chosen=chosen), PreferenceOptions(beta=0.25)).losses.sum().backward()
    assert chosen.grad is not None and chosen.grad.isfinite().all()


def test_simpo_asks_for_a_margin_between_mean_logprobs() -> None:
    result = simpo(PAIRS, PreferenceOptions(beta=2.0, gamma=1.0))
    expected = [-log_sigmoid(2.0 * (-3.0 / 2 + 4.5 / 5) - 1.0), -log_sigmoid(2.0 * (-6.0 / 4 + 5.0 / 2) - 1.0)]
    assert result.losses.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in PAIR_LOSS_FUNCTIONS if not PREFERENCE_LOSSES[name].needs_reference])
def test_a_loss_without_reference_takes_none(name: PreferenceLossName) -> None:
    options = PreferenceOptions(beta=0.1)
    without = replace(PAIRS, ref_chosen=None, ref_rejected=None)
    assert torch.equal(
        PAIR_LOSS_FUNCTIONS[name](without, options).losses, PAIR_LOSS_FUNCTIONS[name](PAIRS, options).losses
    )


@pytest.mark.parametrize("name", list(PAIR_LOSS_FUNCTIONS))
def test_a_step_down_every_loss_parts_the_chosen_from_the_rejected(name: PreferenceLossName) -> None:
    chosen, rejected = PAIRS.chosen.clone().requires_grad_(), PAIRS.rejected.clone().requires_grad_()
    result = PAIR_LOSS_FUNCTIONS[name](replace(PAIRS, chosen=chosen, rejected=rejected), PreferenceOptions(beta=0.1))
    result.losses.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()


@pytest.mark.parametrize("name", list(PAIR_LOSS_FUNCTIONS))
def test_implied_rewards_carry_no_gradient(name: PreferenceLossName) -> None:
    pairs = replace(PAIRS, chosen=PAIRS.chosen.clone().requires_grad_())
    result = PAIR_LOSS_FUNCTIONS[name](pairs, PreferenceOptions(beta=0.1))
    assert not result.chosen_rewards.requires_grad and not result.rejected_rewards.requires_grad


def test_kto_compares_each_answer_with_the_kl() -> None:
    logprobs, ref_logprobs = torch.tensor([-3.0, -6.0, -4.0]), torch.tensor([-4.0, -4.0, -4.5])
    desirable = torch.tensor([True, True, False])
    losses, rewards = kto(
        logprobs - ref_logprobs, desirable, torch.tensor(0.3), beta=0.1, desirable_weight=1.0, undesirable_weight=1.5
    )
    sigmoids = [1 / (1 + math.exp(-0.1 * x)) for x in (1.0 - 0.3, -2.0 - 0.3, 0.3 - 0.5)]
    assert losses.tolist() == pytest.approx([1 - sigmoids[0], 1 - sigmoids[1], 1.5 * (1 - sigmoids[2])])
    assert rewards.tolist() == pytest.approx([0.1, -0.2, 0.05])


def test_a_step_down_ktos_loss_raises_the_desirable_and_lowers_the_others() -> None:
    logprobs = torch.tensor([-3.0, -6.0], requires_grad=True)
    losses, _ = kto(logprobs + 4.0, torch.tensor([True, False]), torch.tensor(0.0), beta=0.1)
    losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].item() < 0 < logprobs.grad[1].item()
