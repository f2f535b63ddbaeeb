"""Learning rate as a fraction of its peak: a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from llmtrain.config.sections import OptimConfig

Schedule = Callable[[int], float]
"""Step (from 0) -> multiple of the peak learning rate."""


def _constant(progress: float, config: OptimConfig) -> float:
    return 1.0


def _linear(progress: float, config: OptimConfig) -> float:
    return 1.0 - (1.0 - config.min_lr_ratio) * progress


def _cosine(progress: float, config: OptimConfig) -> float:
    """Loshchilov and Hutter 2017, equation 5, without restarts."""
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


SHAPES = {"constant": _constant, "linear": _linear, "cosine": _cosine, "wsd": _linear}


def make_schedule(config: OptimConfig, num_steps: int) -> Schedule:
    """Linear warm-up, then the configured shape, which ends one step after the last.

    The shapes run from the end of the warm-up; `wsd` (warm-up, stable, decay: Hu et al. 2024) is level before its
    decay, which is a fraction of all steps, or what the warm-up leaves. Raises ValueError if the warm-up is as long as
    the run.
    """
    shape, warmup = SHAPES[config.schedule], config.warmup(num_steps)
    start = max(warmup, (1 - config.decay_fraction) * num_steps) if config.schedule == "wsd" else warmup

    def schedule(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return shape(min(1.0, max(0.0, (step - start) / (num_steps - start))), config)

    return schedule
