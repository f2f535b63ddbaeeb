"""Policy losses worked out by hand, and what their gradients do to a policy."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from llmtrain.config.rl import POLICY_LOSSES, AggregationName, KlEstimator, PolicyLossName
from llmtrain.objectives.policy_losses import (
    AGGREGATIONS,
    POLICY_LOSS_FUNCTIONS,
    PolicyTokens,
    cispo,
    entropy_bonus,
    gspo,
    kl_estimate,
    kl_loss,
    per_sample,
    per_token,
    policy_metrics,
    ppo_clip,
    reinforce,
    value_loss,
)

LENGTHS = (2, 1)
LOGPROBS = [-0.5, -1.2, -2.0]
OLD_LOGPROBS = [-1.0, -1.25, -1.5]
ADVANTAGES = [2.0, -1.0, -3.0]
RATIOS = [math.exp(new - old) for new, old in zip(LOGPROBS, OLD_LOGPROBS, strict=True)]  # 1.649, 1.051, 0.607
TOTALS = {"tokens": 10.0, "sequences": 4.0}  # of a step that this microbatch is a part of


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(LOGPROBS), torch.tensor(OLD_LOGPROBS), torch.tensor(ADVANTAGES)


def test_ppo_takes_the_worse_of_the_plain_and_the_clipped_objective() -> None:
    losses, clipped = ppo_clip(PolicyTokens(*inputs(), LENGTHS), 0.2, 0.2)
    assert losses.tolist() == pytest.approx([-1.2 * 2.0, RATIOS[1] * 1.0, 0.8 * 3.0])
    assert clipped.tolist() == [True, False, True]


def test_ppo_does_not_clip_where_the_ratio_went_against_the_advantage() -> None:
    logprobs, old_logprobs, advantages = inputs()
    losses, clipped = ppo_clip(PolicyTokens(logprobs, old_logprobs, -advantages, LENGTHS), 0.2, 0.2)
    assert losses.tolist() == pytest.approx([RATIOS[0] * 2.0, -RATIOS[1] * 1.0, -RATIOS[2] * 3.0])
    assert not clipped.any()


def test_ppo_with_a_higher_upper_bound_lets_likelier_tokens_grow_further() -> None:
    losses, clipped = ppo_clip(PolicyTokens(*inputs(), LENGTHS), 0.2, 0.5)
    assert losses.tolist() == pytest.approx([-1.5 * 2.0, RATIOS[1] * 1.0, 0.8 * 3.0])
    assert clipped.tolist() == [True, False, True]


def test_gspo_has_one_ratio_a_response_the_mean_in_logarithms() -> None:
    losses, clipped = gspo(PolicyTokens(*inputs(), LENGTHS), 0.2, 0.4)
    sequence_ratio = math.exp((0.5 + 0.05) / 2)
    assert losses.tolist() == pytest.approx([-sequence_ratio * 2.0, sequence_ratio * 1.0, 0.8 * 3.0])
    assert clipped.tolist() == [False, False, True]


def test_gspo_spreads_the_gradient_evenly_over_a_response() -> None:
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    old_logprobs, advantages = torch.tensor(OLD_LOGPROBS), torch.tensor([2.0, 2.0, -3.0])
    gspo(PolicyTokens(logprobs, old_logprobs, advantages, LENGTHS), 0.5, 0.5).losses.sum().backward()
    ratio = math.exp((0.5 + 0.05) / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-ratio * 2.0, -ratio * 2.0, RATIOS[2] * 3.0])


def test_cispo_bounds_the_weight_and_keeps_every_tokens_gradient() -> None:
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    losses, clipped = cispo(
        PolicyTokens(logprobs, torch.tensor(OLD_LOGPROBS), torch.tensor(ADVANTAGES), LENGTHS), 1.0, 0.2
    )
    losses.sum().backward()
    weights = [1.2, RATIOS[1], RATIOS[2]]
    assert losses.tolist() == pytest.approx([1.2 * 2.0 * 0.5, -RATIOS[1] * 1.2, -RATIOS[2] * 3.0 * 2.0])
    assert clipped.tolist() == [True, False, False]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-w * a for w, a in zip(weights, ADVANTAGES, strict=True)])


def test_cispo_below_one_has_a_lower_bound() -> None:
    losses, clipped = cispo(PolicyTokens(*inputs(), LENGTHS), 0.2, 10.0)
    assert losses[2].item() == pytest.approx(-0.8 * 3.0 * 2.0)
    assert clipped.tolist() == [False, False, True]


def test_reinforce_weighs_the_logprob_with_the_advantage() -> None:
    losses, clipped = reinforce(PolicyTokens(*inputs(), LENGTHS), 0.2, 0.2)
    assert losses.tolist() == pytest.approx([0.5 * 2.0, -1.2 * 1.0, -2.0 * 3.0])
    assert not clipped.any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_mean", (1.0 + 2.0 + 4.0) / 10),
        ("sequence_mean", ((1.0 + 2.0) / 2 + 4.0 / 1) / 4),
        ("constant_length", (1.0 + 2.0 + 4.0) / (4 * 8)),
    ],
)
def test_an_aggregation_divides_by_totals_of_the_step(name: str, expected: float) -> None:
    share = AGGREGATIONS[name](torch.tensor([1.0, 2.0, 4.0]), LENGTHS, TOTALS, 8)
    assert share.item() == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("loss", list(POLICY_LOSS_FUNCTIONS))
def test_shares_of_microbatches_sum_to_the_loss_of_the_whole(loss: str, aggregation: str) -> None:
    tensors, totals = inputs(), {"tokens": 3.0, "sequences": 2.0}

    def share(tokens: slice, lengths: tuple[int, ...]) -> float:
        terms = POLICY_LOSS_FUNCTIONS[loss](PolicyTokens(*(tensor[tokens] for tensor in tensors), lengths), 0.2, 0.2)
        return AGGREGATIONS[aggregation](terms.losses, lengths, totals, 8).item()

    whole = share(slice(0, 3), LENGTHS)
    assert share(slice(0, 2), (2,)) + share(slice(2, 3), (1,)) == pytest.approx(whole)


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("loss", list(POLICY_LOSS_FUNCTIONS))
def test_a_microbatch_without_responses_is_a_zero_attached_to_the_graph(loss: str, aggregation: str) -> None:
    parameter = torch.ones(2, requires_grad=True)
    empty = torch.zeros(0)
    terms = POLICY_LOSS_FUNCTIONS[loss](PolicyTokens(parameter[:0], empty, empty, ()), 0.2, 0.2)
    AGGREGATIONS[aggregation](terms.losses, (), TOTALS, 8).backward()
    assert parameter.grad is not None and parameter.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("loss", list(POLICY_LOSS_FUNCTIONS))
def test_at_ratio_one_every_form_has_the_policy_gradient(loss: str) -> None:
    """Advantages are those of a response, the same at each of its tokens, as GSPO's are."""
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    advantages = torch.tensor([2.0, 2.0, -3.0])
    POLICY_LOSS_FUNCTIONS[loss](
        PolicyTokens(logprobs, logprobs.detach(), advantages, LENGTHS), 0.2, 0.2
    ).losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-2.0, -2.0, 3.0])


def after_updates(loss: str, aggregation: str, advantages: list[float]) -> list[float]:
    """Logprobs of the drawn tokens 0, 1, 0 (responses of two and one tokens) after ten steps on them."""
    logits = torch.zeros(3, 4, requires_grad=True)  # (tokens, vocab)
    drawn = torch.tensor([0, 1, 0])
    old_logprobs = logits.detach().log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
    for _ in range(10):
        logprobs = logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
        terms = POLICY_LOSS_FUNCTIONS[loss](
            PolicyTokens(logprobs, old_logprobs, torch.tensor(advantages), LENGTHS), 0.2, 0.2
        )
        share = AGGREGATIONS[aggregation](terms.losses, LENGTHS, {"tokens": 3.0, "sequences": 2.0}, 2)
        (gradient,) = torch.autograd.grad(share, logits)
        logits = (logits - gradient).detach().requires_grad_()
    return logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0].tolist()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("loss", list(POLICY_LOSS_FUNCTIONS))
def test_tokens_of_positive_advantage_become_likelier_and_the_others_rarer(
    loss: str, aggregation: str, sign: float
) -> None:
    start = math.log(1 / 4)
    first, second, third = after_updates(loss, aggregation, [sign, sign, -sign])
    assert min(sign * (first - start), sign * (second - start), sign * (start - third)) > 0.05


def test_ppo_stops_at_its_bound() -> None:
    """With steps much smaller than the range, the ratio ends within one step beyond the bound."""
    logprobs = torch.tensor([-1.0], requires_grad=True)
    old_logprobs = torch.tensor([-1.0])
    for _ in range(100):
        losses, _ = ppo_clip(PolicyTokens(logprobs, old_logprobs, torch.ones(1), (1,)), 0.2, 0.2)
        (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
        logprobs = (logprobs - 0.01 * gradient).detach().requires_grad_()
    assert math.exp(logprobs.item() + 1.0) == pytest.approx(1.2, abs=0.02)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", [0.5, -0.3]),
        ("k2", [0.5**2 / 2, 0.3**2 / 2]),
        ("k3", [math.exp(-0.5) - 1 + 0.5, math.exp(0.3) - 1 - 0.3]),
    ],
)
def test_kl_estimates_of_two_tokens(kind: KlEstimator, expected: list[float]) -> None:
    estimate = kl_estimate(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.7]), kind)
    assert estimate.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_an_unbiased_kl_estimate_averages_to_the_kl(kind: KlEstimator) -> None:
    """The average over a vocabulary, each token as often as the policy draws it, against the sum of the definition."""
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    estimate = kl_estimate(policy.log(), reference.log(), kind)
    expected = 0.7 * math.log(0.7 / 0.3) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.4)
    assert (policy * estimate).sum().item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_kl_in_the_loss_pulls_the_policy_to_the_reference(kind: KlEstimator) -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    kl_loss(logprobs, torch.tensor([-1.5, -1.7]), kind).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].item() > 0 > logprobs.grad[1].item()


def test_k1_in_the_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="k1 in the loss trains nothing"):
        kl_loss(torch.tensor([-1.0]), torch.tensor([-1.5]), "k1")


def test_policy_metrics_are_shares_over_the_tokens_of_the_step() -> None:
    logprobs, old_logprobs, _ = inputs()
    metrics = policy_metrics(
        logprobs, old_logprobs, ppo_clip(PolicyTokens(*inputs(), LENGTHS), 0.2, 0.2).clipped, TOTALS
    )
    k3 = [ratio - 1 - math.log(ratio) for ratio in RATIOS]
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 10)
    assert metrics["approx_kl"].item() == pytest.approx(sum(k3) / 10)


VALUES, OLD_VALUES, RETURNS = [0.5, 0.9, 0.1], [0.4, 0.4, 0.6], [1.0, 1.0, 1.0]


def test_the_value_loss_is_half_the_mean_squared_error() -> None:
    share, metrics = value_loss(*map(torch.tensor, (VALUES, OLD_VALUES, RETURNS)), None, TOTALS)
    assert share.item() == pytest.approx((0.5**2 + 0.1**2 + 0.9**2) / 2 / 10)
    assert metrics["value_loss"].item() == pytest.approx(share.item())
    assert metrics["value_clip_fraction"].item() == 0.0


def test_the_clipped_value_loss_takes_the_larger_error() -> None:
    """The second value may come only to 0.6; the third may go only to 0.4, but its own error is larger."""
    share, metrics = value_loss(*map(torch.tensor, (VALUES, OLD_VALUES, RETURNS)), 0.2, TOTALS)
    assert share.item() == pytest.approx((0.5**2 + 0.4**2 + 0.9**2) / 2 / 10)
    assert metrics["value_clip_fraction"].item() == pytest.approx(1 / 10)


def test_the_clipped_value_loss_stops_values_that_moved_far_towards_their_return() -> None:
    values = torch.tensor(VALUES, requires_grad=True)
    value_loss(values, torch.tensor(OLD_VALUES), torch.tensor(RETURNS), 0.2, TOTALS)[0].backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-0.5 / 10, 0.0, -0.9 / 10])


def test_the_entropy_bonus_lowers_the_loss() -> None:
    share, metrics = entropy_bonus(torch.tensor([1.0, 2.0, 0.5]), 0.01, TOTALS)
    assert share.item() == pytest.approx(-0.01 * 3.5 / 10)
    assert metrics["entropy"].item() == pytest.approx(3.5 / 10)


def test_values_of_samples_and_tokens_go_into_each_other() -> None:
    assert per_token(torch.tensor([1.0, 2.0]), LENGTHS).tolist() == [1.0, 1.0, 2.0]
    assert per_sample(torch.tensor([1.0, 2.0, 5.0]), LENGTHS).tolist() == [3.0, 5.0]


def test_the_configuration_and_the_losses_agree() -> None:
    assert set(get_args(PolicyLossName)) == set(POLICY_LOSSES) == set(POLICY_LOSS_FUNCTIONS)
    assert set(get_args(AggregationName)) == set(AGGREGATIONS)
    tokens = PolicyTokens(*inputs(), LENGTHS)
    for name, facts in POLICY_LOSSES.items():
        loss = POLICY_LOSS_FUNCTIONS[name]
        narrow, wide = loss(tokens, 0.01, 0.01), loss(tokens, 0.9, 9.0)
        assert bool(narrow.clipped.any()) == facts.clips
        moved = loss(tokens._replace(old_logprobs=tokens.old_logprobs - 0.1), 0.9, 9.0)
        assert torch.equal(moved.losses, wide.losses) != facts.is_off_policy


@pytest.mark.parametrize("loss", ["ppo", "gspo", "cispo"])
@pytest.mark.parametrize("log_ratio", [50.0, 100.0, 1000.0])
def test_a_ratio_without_bound_that_is_clipped_changes_no_other(loss: PolicyLossName, log_ratio: float) -> None:
    old = torch.tensor([-1.0, -1.0 - log_ratio, -2.0])
    logprobs = torch.tensor([-1.1, -1.0, -2.0], requires_grad=True)
    tokens = PolicyTokens(logprobs, old, torch.ones(3), (1, 1, 1))
    POLICY_LOSS_FUNCTIONS[loss](tokens, 0.2, 0.2).losses.sum().backward()
    gradient = logprobs.grad
    assert gradient is not None and bool(gradient.isfinite().all())
    assert gradient.tolist() == pytest.approx([-math.exp(-0.1), -1.2 if loss == "cispo" else 0.0, -1.0])
