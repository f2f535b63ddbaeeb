"""The setting of a trial is a function of the seed, its number and what came before; none comes twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import pytest

from llmtrain.tune.sweep.space import Dimension
from llmtrain.tune.sweep.suggest import SamplerName, draw, grid

SPACE = [
    Dimension("optim.lr", low=1e-5, high=1e-1, is_log=True),
    Dimension("optim.warmup_steps", low=0, high=20, is_int=True),
    Dimension("optim.name", choices=("adamw", "muon")),
    Dimension("optim.muon_lr", low=0.01, high=0.1, when={"optim.name": "muon"}),
]


def anything(_values: object) -> str | None:
    return None


def drawn(name: SamplerName, space: Sequence[Dimension], count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The settings of a sweep's trials, the score of each its learning rate."""
    study = optuna.create_study()
    for _ in range(count):
        setting = draw(name, space, anything, seed, study.trials)
        if setting is None:
            break
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(setting.params),
                distributions=dict(setting.distributions),
                user_attrs={"values": dict(setting.values)},
                value=float(setting.values.get("optim.lr", 0.0)),
            )
        )
    return [trial.user_attrs["values"] for trial in study.trials]


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_the_same_seed_draws_the_same_and_another_others(name: SamplerName) -> None:
    first = drawn(name, SPACE, 12)
    assert first == drawn(name, SPACE, 12)
    assert first != drawn(name, SPACE, 12, seed=1)
    assert len({str(values) for values in first}) == 12
    assert {("optim.muon_lr" in values) == (values["optim.name"] == "muon") for values in first} == {True}


def test_a_random_setting_does_not_depend_on_results() -> None:
    study = optuna.create_study()
    for number, values in enumerate(drawn("random", SPACE, 4)):
        setting = draw("random", SPACE, anything, 0, study.trials)
        assert setting is not None
        assert setting.values == values
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.FAIL if number % 2 else optuna.trial.TrialState.RUNNING,
                params=dict(setting.params),
                distributions=dict(setting.distributions),
                user_attrs={"values": dict(setting.values)},
            )
        )


def test_tpe_draws_near_what_was_good() -> None:
    rates = [values["optim.lr"] for values in drawn("tpe", SPACE, 30)]
    assert sum(rate < 1e-3 for rate in rates[20:]) > sum(rate < 1e-3 for rate in rates[:10])


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_a_space_ends_when_all_of_it_was_tried(name: SamplerName) -> None:
    space = [Dimension("adapter.rank", choices=(4, 8, 16)), Dimension("optim.name", choices=("adamw", "muon"))]
    assert len(drawn(name, space, 20)) == 6


def test_what_the_schema_refuses_is_drawn_again_and_counted() -> None:
    setting = draw("random", SPACE[2:3], lambda values: "no" if values["optim.name"] == "adamw" else None, 3, [])
    assert setting is not None
    assert setting.values == {"optim.name": "muon"}
    assert (setting.num_refused > 0) == (setting.refusal == "no")
    with pytest.raises(ValueError, match="the configuration refuses 200 of 200 draws: no"):
        draw("random", SPACE, lambda _values: "no", 0, [])
    with pytest.raises(ValueError, match="the configuration refuses each of the 2 combinations: no"):
        grid(SPACE[2:3], lambda _values: "no")
