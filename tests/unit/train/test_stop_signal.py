"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from llmtrain.train.stop_signal import StopSignal


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    stop = StopSignal()
    yield stop
    stop.restore()


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
