"""Steps that are not finite, and spikes: what is counted, what is too many, what comes back."""

from __future__ import annotations

import pytest

from llmtrain.train.step_guard import SPIKE_HISTORY_STEPS, SPIKE_MEAN_DECAY, StepGuard


def guard(max_nonfinite_steps: int = 3, spike_factor: float | None = 2.0) -> StepGuard:
    return StepGuard(max_nonfinite_steps, spike_factor)


def test_an_applied_step_ends_a_row_of_skipped_ones() -> None:
    counted = guard(max_nonfinite_steps=3)
    for step in (1, 2):
        counted.skip(step, [0, 3])
    counted.accept(1.0)
    for step in (4, 5):
        counted.skip(step, [0, 3])
    with pytest.raises(ValueError, match=r"step 6: .*\(samples 0 to 3\); that is 3 in a row"):
        counted.skip(6, [0, 3])
    assert counted.nonfinite_total == 5


def test_a_loss_spikes_above_so_many_times_the_running_mean() -> None:
    counted = guard(spike_factor=2.0)
    losses = [4.0 - 0.1 * step for step in range(SPIKE_HISTORY_STEPS)]
    for loss in losses:
        assert not counted.is_spike(loss)
        counted.accept(loss)
    weights = [SPIKE_MEAN_DECAY**age for age in reversed(range(SPIKE_HISTORY_STEPS))]
    mean = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert counted.is_spike(2.001 * mean)
    assert not counted.is_spike(1.999 * mean)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_does_not_end_the_search_for_spikes(bad: float) -> None:
    counted = guard(spike_factor=2.0)
    counted.accept(bad)
    for _ in range(SPIKE_HISTORY_STEPS):
        counted.accept(1.0)
    assert counted.is_spike(2.1) and not counted.is_spike(1.9)


def test_a_spike_does_not_join_the_mean() -> None:
    counted = guard(spike_factor=2.0)
    for _ in range(SPIKE_HISTORY_STEPS):
        counted.accept(1.0)
    before = counted.state_dict()
    assert all(counted.is_spike(100.0) for _ in range(50))
    assert counted.state_dict() == before


def test_without_a_factor_nothing_is_a_spike() -> None:
    counted = guard(spike_factor=None)
    for _ in range(50):
        counted.accept(1.0)
    assert not counted.is_spike(1e9)


def test_its_state_comes_back() -> None:
    one, other = guard(), guard()
    one.skip(1, [0, 3])
    for _ in range(SPIKE_HISTORY_STEPS):
        one.accept(1.0)
    one.skip(30, [0, 3])
    other.load_state_dict(one.state_dict())
    assert other == one
    assert other.is_spike(3.0)
