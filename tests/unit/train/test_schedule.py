"""Learning rates at the steps where they are known by hand."""

import pytest

from llmtrain.config.sections import OptimConfig
from llmtrain.train.schedule import SHAPES, make_schedule


@pytest.mark.parametrize("shape", list(SHAPES))
def test_warmup_rises_in_a_straight_line_to_the_peak(shape: str) -> None:
    schedule = make_schedule(OptimConfig(schedule=shape, warmup_steps=4), 100)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("shape", ["linear", "cosine", "wsd"])
def test_decay_reaches_the_floor_with_the_step_after_the_last_and_never_passes_it(shape: str) -> None:
    schedule = make_schedule(OptimConfig(schedule=shape, warmup_steps=10, min_lr_ratio=0.1), 100)
    values = [schedule(step) for step in range(10, 100)]
    assert schedule(100) == pytest.approx(0.1)
    assert 0.1 < values[-1] < 0.2
    assert values == sorted(values, reverse=True)
    assert schedule(500) == pytest.approx(0.1)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    schedule = make_schedule(OptimConfig(schedule="cosine", warmup_steps=0, min_lr_ratio=0.0), 100)
    assert schedule(50) == pytest.approx(0.5)
    assert schedule(25) == pytest.approx(0.5 * (1 + 2**-0.5))


def test_wsd_is_level_until_its_decay() -> None:
    config = OptimConfig(schedule="wsd", warmup_steps=0, decay_fraction=0.2, min_lr_ratio=0.0)
    schedule = make_schedule(config, 100)
    assert schedule(79) == pytest.approx(1.0)
    assert schedule(90) == pytest.approx(0.5)


def test_one_step_is_a_schedule_too() -> None:
    assert make_schedule(OptimConfig(warmup_steps=0), 1)(0) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", ["wsd", "cosine", "linear"])
@pytest.mark.parametrize(("warmup", "decay"), [(8, 0.5), (5, 1.0), (90, 0.2), (60, 0.4)])
def test_the_rate_has_no_jump_where_the_warm_up_ends(shape: str, warmup: int, decay: float) -> None:
    num_steps = 100 if warmup > 10 else 10
    config = OptimConfig(schedule=shape, warmup_steps=warmup, decay_fraction=decay)
    rates = [make_schedule(config, num_steps)(step) for step in range(num_steps)]
    assert rates[warmup] == pytest.approx(1.0) and max(rates) == rates[warmup]
    assert sorted(rates[warmup:], reverse=True) == rates[warmup:]
