"""Signals, non-finite steps and spikes, as the loop hears of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from llmtrain.train.guard import SPIKE_HISTORY_STEPS, SPIKE_MEAN_DECAY, StepGuard, StopSignal


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    stop = StopSignal()
    yield stop
    stop.restore()


def guard(max_nonfinite_steps: int = 3, spike_factor: float | None = 2.0) -> StepGuard:
    return StepGuard(max_nonfinite_steps, spike_factor)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_by_name(stop: StopSignal, number: signal.Signals) -> None:
    assert stop.requested is None
    os.kill(os.getpid(), number)
    assert stop.requested == number.name


def test_more_signals_change_nothing(stop: StopSignal) -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    assert stop.requested is not None


def test_restoring_puts_the_handlers_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    StopSignal().restore()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_an_applied_step_ends_a_row_of_skipped_ones() -> None:
    counted = guard(max_nonfinite_steps=3)
    for step in (1, 2):
        counted.skipped(step, [0, 3])
    assert not counted.spiked(1.0)
    for step in (4, 5):
        counted.skipped(step, [0, 3])
    with pytest.raises(ValueError, match=r"step 6: .*\(samples 0 to 3\); that is 3 in a row"):
        counted.skipped(6, [0, 3])
    assert counted.nonfinite_total == 5


def test_a_loss_spikes_above_so_many_times_the_running_mean() -> None:
    counted = guard(spike_factor=2.0)
    losses = [4.0 - 0.1 * step for step in range(SPIKE_HISTORY_STEPS)]
    assert not any(counted.spiked(loss) for loss in losses)
    weights = [SPIKE_MEAN_DECAY**age for age in reversed(range(SPIKE_HISTORY_STEPS))]
    mean = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert counted.spiked(2.001 * mean)
    assert not counted.spiked(1.999 * mean)


def test_a_spike_does_not_join_the_mean() -> None:
    counted = guard(spike_factor=2.0)
    for _ in range(SPIKE_HISTORY_STEPS):
        counted.spiked(1.0)
    assert all(counted.spiked(100.0) for _ in range(50))


def test_without_a_factor_nothing_is_a_spike() -> None:
    counted = guard(spike_factor=None)
    assert not any(counted.spiked(loss) for loss in [1.0] * 50 + [1e9])


def test_its_state_comes_back() -> None:
    one, other = guard(), guard()
    one.skipped(1, [0, 3])
    for _ in range(SPIKE_HISTORY_STEPS):
        one.spiked(1.0)
    one.skipped(30, [0, 3])
    other.load_state_dict(one.state_dict())
    assert other == one
    assert other.spiked(3.0)
