"""Signals that ask a command to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from llmtrain.system.stop_signal import SIGNALS, Stopped, StopSignal

ENDINGS = (Stopped, KeyboardInterrupt)


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    with StopSignal() as stop:
        yield stop


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_at_the_start_a_signal_ends_the_command(stop: StopSignal, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Stopped):
        send(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_in_the_loop_a_signal_is_noted_by_name(stop: StopSignal, number: signal.Signals) -> None:
    stop.note()
    assert stop.requested is None
    send(number)
    assert stop.requested == number.name


def test_more_signals_change_nothing(stop: StopSignal) -> None:
    stop.note()
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
        send(number)
    assert stop.requested == "SIGUSR1"


def test_a_second_signal_does_not_break_into_what_the_first_one_ends(stop: StopSignal) -> None:
    with pytest.raises(Stopped):
        send(signal.SIGUSR1)
    send(signal.SIGTERM)  # as a launcher passes on what the scheduler sent itself


def test_a_signal_of_a_library_ends_nothing(stop: StopSignal) -> None:
    stop.note()
    before = threading.enumerate()  # an earlier test's may still wait
    for number in (signal.SIGALRM, signal.SIGCHLD):  # a reward function's limit of time, a DataLoader's workers
        stop._seen(number)
    assert "backstop" not in [thread.name for thread in threading.enumerate() if thread not in before]


def test_while_the_model_is_written_only_a_ctrl_c_ends_it(stop: StopSignal) -> None:
    stop.note_all_but_ctrl_c()
    send(signal.SIGTERM)
    assert stop.requested == "SIGTERM"
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_was_noted_ends_the_next_stage_at_its_start(stop: StopSignal, number: signal.Signals) -> None:
    stop.note()
    send(number)
    with pytest.raises(ENDINGS):
        stop.end()


def test_what_was_there_before_comes_back_also_after_an_error() -> None:
    def fail() -> None:
        with StopSignal():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            raise ZeroDivisionError

    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError):
        fail()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_ctrl_c_that_a_shell_ignores_for_its_background_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            send(signal.SIGINT)
            assert stop.requested is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_library_that_turns_the_end_into_an_error_of_its_own_does_not_hide_it(number: signal.Signals) -> None:
    def library() -> None:
        try:
            send(number)
        except BaseException:
            raise RecursionError("of an import") from None

    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Stopped), StopSignal():
        library()


def test_a_signal_in_an_import_is_acted_on_at_its_end(stop: StopSignal) -> None:
    imported = False

    def import_slowly() -> None:
        nonlocal imported
        with stop.deferred():
            send(signal.SIGINT)
            imported = True

    with pytest.raises(KeyboardInterrupt):
        import_slowly()
    assert imported
