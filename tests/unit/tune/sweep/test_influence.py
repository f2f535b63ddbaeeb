"""The tree and the importances name the setting that matters, and not the one that does nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from llmtrain.tune.sweep.influence import importances, sentences, tree_of
from llmtrain.tune.sweep.space import Dimension
from llmtrain.tune.sweep.study import TrialRecord

SPACE = [
    Dimension("optim.lr", low=1e-5, high=1e-2, is_log=True),
    Dimension("optim.warmup_steps", low=0, high=20, is_int=True),
    Dimension("optim.schedule", choices=("cosine", "linear")),
    Dimension("optim.weight_decay", low=0.0, high=1.0),
]
GIVEN = {"optim.lr": 1e-4, "optim.warmup_steps": 0, "optim.schedule": "cosine", "optim.weight_decay": 0.0}

Loss = Callable[[Mapping[str, Any]], float]


def trials(loss: Loss, count: int, seed: int) -> list[TrialRecord]:
    drawn = random.Random(seed)
    settings = [
        {
            "optim.lr": 10 ** drawn.uniform(-5, -2),
            "optim.warmup_steps": drawn.randint(0, 20),
            "optim.schedule": drawn.choice(["cosine", "linear"]),
            "optim.weight_decay": drawn.random(),
        }
        for _ in range(count)
    ]
    return [record(number, values, loss(values) + drawn.gauss(0, 0.02)) for number, values in enumerate(settings)]


def record(number: int, values: Mapping[str, Any], score: float | None) -> TrialRecord:
    state = "failed" if score is None else "finished"
    return TrialRecord(number, values, state, score, [], {}, "", 0, 0, 0.0, 0, "")


def by_rate(values: Mapping[str, Any]) -> float:
    return 2.9 if values["optim.lr"] > 3e-4 else 2.3


def by_schedule(values: Mapping[str, Any]) -> float:
    return 2.9 if values["optim.schedule"] == "linear" else 2.3


def by_rate_without_warmup(values: Mapping[str, Any]) -> float:
    return 2.9 if values["optim.lr"] > 3e-4 and values["optim.warmup_steps"] < 10 else 2.3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("loss", "key"), [(by_rate, "optim.lr"), (by_schedule, "optim.schedule")])
def test_the_key_that_matters_is_named_and_no_other(loss: Loss, key: str, seed: int) -> None:
    records = trials(loss, 20, seed)
    tree = tree_of(records, SPACE, GIVEN)
    assert tree is not None
    first, *_ = tree.children
    assert first.path[0][0].key == key
    shares = importances(records, SPACE, GIVEN)
    assert max(shares, key=shares.__getitem__) == key
    assert shares[key] > 0.6


def test_two_keys_that_only_matter_together_are_in_one_sentence() -> None:
    records = trials(by_rate_without_warmup, 60, seed=0)
    tree = tree_of(records, SPACE, GIVEN)
    assert tree is not None
    worst = sentences(tree, "eval_loss", maximize=False)[-1]
    assert "optim.lr above 0.000" in worst
    assert "optim.warmup_steps at most" in worst
    assert "mean eval_loss 2.899 (12 runs)" in worst


def test_sentences_give_the_groups_from_the_best_on_with_mean_and_count() -> None:
    rates = [1e-5, 2e-5, 5e-5, 1e-4, 1e-3, 2e-3, 5e-3, 8e-3]
    records = [record(i, {"optim.lr": lr}, 2.0 if lr < 3e-4 else 3.0) for i, lr in enumerate(rates)]
    tree = tree_of(records, SPACE[:1], GIVEN)
    assert tree is not None
    assert sentences(tree, "eval_loss", maximize=False) == [
        "optim.lr at most 0.00032: mean eval_loss 2 (4 runs)",
        "optim.lr above 0.00032: mean eval_loss 3 (4 runs)",
    ]
    assert sentences(tree, "eval_accuracy", maximize=True)[0].startswith("optim.lr above")


def test_a_run_that_diverged_does_not_hide_the_others() -> None:
    records = [*trials(by_rate, 20, seed=1), record(20, {**GIVEN, "optim.lr": 1e-2}, 1e6)]
    tree = tree_of(records, SPACE, GIVEN)
    assert tree is not None
    assert tree.children[0].path[0][0].key == "optim.lr"
    assert 1e-4 < 10 ** tree.children[0].path[0][1] < 1e-3


def test_noise_alone_is_not_explained() -> None:
    found = [tree_of(trials(lambda _values: 2.0, 30, seed), SPACE, GIVEN) for seed in range(10)]
    assert sum(tree is None for tree in found) >= 8, "one in twenty is expected"


def test_too_few_trials_and_failed_ones_explain_nothing() -> None:
    records = [*trials(by_rate, 5, seed=0), record(5, {}, None)]
    assert tree_of(records, SPACE, GIVEN) is None
    assert importances(records, SPACE, GIVEN) == {}


def test_the_configuration_as_it_is_counts_with_its_own_values() -> None:
    records = [*trials(by_rate, 11, seed=2), record(11, {}, 2.3)]
    tree = tree_of(records, SPACE, GIVEN)
    assert tree is not None
    assert len(tree.trials) == 12
    assert importances(records, SPACE, GIVEN)
