"""The setting of a trial: a pure function of the seed, the trial's number and, for TPE, the trials before it.

So a sweep that was killed, or that several processes share, draws what one left alone would. Optuna's samplers draw;
what the schema refuses, and what was tried already, is drawn again and counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

from llmtrain.config.help import yaml_scalar
from llmtrain.tune.sweep.space import Dimension, grid_of, grid_size

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

SamplerName = Literal["tpe", "random", "grid"]
MAX_ATTEMPTS = 200
MAX_TPE_ATTEMPTS = 10  # after which draws are random: of a small space TPE draws the same few again
STARTUP_TRIALS = 8  # drawn at random before TPE looks at results: Optuna's 10, for sweeps of 20 trials

Refuse = Callable[[Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Setting:
    """What a trial tries: dotted keys and their values, also as the storage holds them."""

    values: Mapping[str, Any]
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    num_refused: int = 0  # draws before it that the schema refuses
    refusal: str = ""  # why, of the first


@dataclass(frozen=True)
class Grid:
    """The combinations of a grid that the schema takes, and how many it refuses."""

    combinations: Sequence[Mapping[str, Any]]
    num_refused: int
    refusal: str


def grid(space: Sequence[Dimension], refuse: Refuse) -> Grid:
    """The grid of a space. Raises ValueError if the schema refuses all of it."""
    grid_size(space)
    taken, refusals = [], []
    for values in grid_of(space):
        refusal = refuse(values)
        if refusal is None:
            taken.append(values)
        else:
            refusals.append(refusal)
    if not taken:
        raise ValueError(f"the configuration refuses each of the {len(refusals)} combinations: {refusals[0]}")
    return Grid(taken, len(refusals), refusals[0] if refusals else "")


def draw(
    name: SamplerName, space: Sequence[Dimension], refuse: Refuse, seed: int, history: Sequence[FrozenTrial]
) -> Setting | None:
    """The setting of the next trial after `history`; None: nothing is left that was not tried.

    Raises ValueError if the schema refuses whatever is drawn.
    """
    tried = {yaml_scalar(trial.user_attrs["values"]) for trial in history}
    refusals: list[str] = []
    for attempt in range(MAX_ATTEMPTS):
        kind = name if attempt < MAX_TPE_ATTEMPTS else "random"
        setting = _drawn(_sampler(kind, _seed(seed, len(history), attempt)), space, history)
        if yaml_scalar(setting.values) in tried:
            continue
        refusal = refuse(setting.values)
        if refusal is None:
            return Setting(
                setting.values,
                setting.params,
                setting.distributions,
                len(refusals),
                refusals[0] if refusals else "",
            )
        refusals.append(refusal)
    if refusals and not history:
        raise ValueError(f"the configuration refuses {len(refusals)} of {MAX_ATTEMPTS} draws: {refusals[0]}")
    return None


def fixed(space: Sequence[Dimension], values: Mapping[str, Any]) -> Setting:
    """A setting that is given, not drawn: of a grid, or the configuration as it is."""
    varied = [dimension for dimension in space if dimension.key in values]
    known = [dimension for dimension in varied if _contains(dimension, values[dimension.key])]
    return Setting(
        dict(values),
        {dimension.key: _stored(dimension, values[dimension.key]) for dimension in known},
        {dimension.key: _distribution(dimension) for dimension in known},
    )


def _drawn(sampler: BaseSampler, space: Sequence[Dimension], history: Sequence[FrozenTrial]) -> Setting:
    """What a sampler suggests after a history, in a study that is in memory only."""
    import optuna

    with quiet():
        study = optuna.create_study(sampler=sampler)
        study.add_trials(history)
        trial = study.ask()
        values = dict(_suggested(trial, space))
        drawn = study.trials[trial.number]
    return Setting(values, drawn.params, drawn.distributions)


def _suggested(trial: Trial, space: Sequence[Dimension]) -> Iterator[tuple[str, Any]]:
    """Each key that varies in a trial, with its value."""
    values: dict[str, Any] = {}
    for dimension in space:
        if not dimension.holds(values):
            continue
        value: Any
        if dimension.choices:
            label = trial.suggest_categorical(dimension.key, dimension.labels)
            value = dimension.choices[dimension.labels.index(label)]
        elif dimension.is_int:
            step = 1 if dimension.step is None else round(dimension.step)
            low, high = round(dimension.low), round(dimension.high)
            value = trial.suggest_int(dimension.key, low, high, step=step, log=dimension.is_log)
        else:
            value = trial.suggest_float(
                dimension.key, dimension.low, dimension.high, step=dimension.step, log=dimension.is_log
            )
            value = _rounded(value, dimension)
        values[dimension.key] = value
        yield dimension.key, value


def _rounded(value: float, dimension: Dimension) -> float:
    """A drawn number in as many digits as a person would give."""
    if dimension.step is not None:
        return float(f"{value:.12g}")
    return min(max(float(f"{value:.3g}"), dimension.low), dimension.high)


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices:
        return CategoricalDistribution(dimension.labels)
    if dimension.is_int:
        step = 1 if dimension.step is None else round(dimension.step)
        return IntDistribution(round(dimension.low), round(dimension.high), log=dimension.is_log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.is_log, step=dimension.step)


def _stored(dimension: Dimension, value: Any) -> Any:
    return yaml_scalar(value) if dimension.choices else value


def _contains(dimension: Dimension, value: Any) -> bool:
    return value in dimension.choices if dimension.choices else dimension.low <= value <= dimension.high


def _sampler(name: SamplerName, seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    if name == "random":
        return RandomSampler(seed)
    # `multivariate` draws keys together, so that it finds pairs that only work together.
    return TPESampler(n_startup_trials=STARTUP_TRIALS, multivariate=True, seed=seed)


def _seed(seed: int, number: int, attempt: int) -> int:
    digest = blake2b(f"{seed}/{number}/{attempt}".encode(), digest_size=4, person=b"llmtrain sweep").digest()
    return int.from_bytes(digest, "little")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, Optuna's log is off, which reports each trial in another form than ours."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
