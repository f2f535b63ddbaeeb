"""What `--auto` proposes follows from the model's size and the time of a run, and is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny_sweep

from llmtrain.tune.sweep.auto import Probe, learning_rate, propose
from llmtrain.tune.sweep.space import check_space
from llmtrain.tune.sweep.target import Target, load_target

FAST = Probe(
    parameters=134_515_008,
    rows=180,
    device="cpu",
    cpus=2,
    start_seconds=10.0,
    step_seconds=1.0,
    eval_seconds=1.0,
    num_steps=40,
)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    train = {"steps": None, "epochs": 1}
    return load_target([str(tiny_sweep.write_inputs(tmp_path, train=train, optim={"warmup_steps": None}))], None)


@pytest.mark.parametrize(
    ("kind", "parameters", "expected"),
    [
        ("none", 7_000_000_000, 2e-5),  # Llama 2, section 3.1
        ("lora", 7_000_000_000, 2e-4),  # QLoRA, appendix B
        ("none", 135_000_000, 2e-5 * (7e9 / 135e6) ** 0.4),
        ("lora", 1_000, 0.03),
    ],
)
def test_the_learning_rate_follows_from_the_size(tmp_path: Path, kind: str, parameters: int, expected: float) -> None:
    config = load_target([str(tiny_sweep.write_inputs(tmp_path, adapter={"kind": kind}))], "sft").config
    assert learning_rate(config, parameters)[0] == pytest.approx(expected)


def test_full_runs_if_there_is_time_and_more_keys(target: Target) -> None:
    proposal = propose(target, FAST, hours=1.0)
    assert "train.steps" not in proposal.changes
    assert set(proposal.space) == {"optim.lr", "train.epochs", "optim.warmup_steps", "adapter.rank"}
    assert proposal.first[0] == {}, "the configuration as it is"
    assert check_space(proposal.space, target, "eval_loss", "auto")
    assert all(target.refusal({**proposal.changes, **first}) is None for first in proposal.first)


def test_shorter_runs_if_there_is_not_and_it_is_said(target: Target) -> None:
    slow = dataclasses.replace(FAST, step_seconds=10.0)
    proposal = propose(target, slow, hours=0.5)
    assert proposal.changes["train.steps"] == 21
    assert set(proposal.space) == {"optim.lr"}
    assert "each run is cut to 21 of 40 steps" in "\n".join(proposal.lines)
    assert "left as they are" in "\n".join(proposal.lines)
    assert 8 * slow.run_seconds(21) <= 1800


def test_at_least_three_runs_of_some_steps(target: Target) -> None:
    proposal = propose(target, dataclasses.replace(FAST, step_seconds=100.0), hours=0.1)
    assert proposal.trials == 3
    assert proposal.changes["train.steps"] == 8


def test_the_range_is_around_the_guess_whatever_the_configuration_says(tmp_path: Path) -> None:
    far = load_target([str(tiny_sweep.write_inputs(tmp_path, optim={"lr": 1e-7}))], None)
    low, high = propose(far, FAST, hours=1.0).space["optim.lr"]["log"]
    guess = learning_rate(far.config, FAST.parameters)[0]
    assert low == pytest.approx(guess / 10, rel=0.05)
    assert high == pytest.approx(guess * 10, rel=0.05)
