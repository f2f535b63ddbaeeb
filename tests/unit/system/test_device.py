"""The peak that MFU is a share of."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from llmtrain.system import device
from llmtrain.system.device import peak_flops


def test_jobs_beside_this_one_do_not_make_the_peak_look_low(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step would then seem to use more than the hardware has: an MFU of 157 % was printed on a busy machine."""
    waiting = itertools.count(step=10.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(waiting))
    peak, source = peak_flops(torch.device("cpu"), torch.float32)
    assert source == "measured 1024x1024 matmul, float32"
    assert peak > 10 * 2 * 1024**3 / 10.0, "10 s on the wall passed at each product"


def test_a_clock_that_counts_in_long_ticks_leaves_the_time_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    assert 0 < peak_flops(torch.device("cpu"), torch.float32)[0] < float("inf")


def test_more_threads_than_processors_do_not_make_the_peak_look_high(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with OMP_NUM_THREADS=8 in a job that has two processors: the threads take turns."""
    walls, computed = itertools.count(step=10.0), itertools.count(step=1.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(walls))
    monkeypatch.setattr(time, "process_time", lambda: next(computed))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(device, "usable_cores", lambda: 2)
    assert peak_flops(torch.device("cpu"), torch.float32)[0] == 2 * 1024**3 / 0.5
