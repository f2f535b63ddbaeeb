"""A run that is stopped on some ranks goes on, on fewer or more of them and under another engine, as if left alone.

Each run is stopped inside: of PPO, with half of a rollout trained on, and the next one still to come. What it goes on
to is compared with the run that one process made without a stop: the same samples in each step, losses and weights to
float tolerance. Sums over ranks and microbatches come in another order, which costs about 1e-7 of a gradient; Adam
divides by the gradient's size, so a weight whose gradient is all but zero can move by up to a learning rate (1e-3) more
or less. The tolerance is a two-hundredth of one such step, where weights move by 5e-4 to 7e-2; 4e-7 was measured.
Dropout is off: it is drawn by rank.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from elastic_runs import (
    STEPS,
    STOPPED_AT,
    Elastic,
    Launch,
    copy_stopped,
    largest_gap,
    losses,
    pretrain,
    samples_of_steps,
    tensors,
)

from llmtrain.train.checkpoint import Checkpoint

RECIPES = ("pretrain", "sft", "reward", "dpo", "ppo")
WHOLE = {
    "one": ("ddpx3", "ddpx4", "zero3x3"),
    "ddpx2": ("one", "ddpx3", "ddpx4", "zero1x3", "zero2x2", "zero2x3", "zero3x2", "zero3x4"),
    "zero2x2": ("one", "ddpx2", "ddpx3", "ddpx4", "zero1x2", "zero2x3", "zero3x3"),
    "zero3x2": ("one", "ddpx3", "zero2x4"),
}
FURTHER = {  # what is trained -> stopped under -> goes on under
    "pretrain": {"ddpx2": ("fsdp2x3",), "fsdp2x2": ("one", "ddpx3", "fsdp2x4", "zero3x3")},
    "ema": {"ddpx2": ("one", "zero2x3"), "zero2x2": ("ddpx3",)},
    "muon": {"ddpx2": ("one", "ddpx3", "ddpx4")},
    "kto": {"ddpx2": ("one", "zero2x3"), "zero2x2": ("ddpx3",)},
    "ppo-few": {"ddpx2": ("one", "ddpx4"), "zero2x2": ("zero3x4",)},
    "ppo-lora": {"ddpx2": ("one", "zero3x3"), "zero2x2": ("ddpx3",)},
}
QUICK = {("pretrain", "ddpx2", "ddpx3")}
SLOW = {
    *((recipe, "zero2x2", "ddpx3") for recipe in ("sft", "dpo")),
    *((recipe, "ddpx2", "zero3x3") for recipe in ("pretrain", "reward", "ppo")),
    ("ppo-few", "ddpx2", "ddpx4"),
    ("pretrain", "ddpx2", "fsdp2x3"),
    ("ema", "ddpx2", "zero2x3"),
    ("muon", "ddpx2", "ddpx3"),
}
TOLERANCE = 5e-6
LEAST_MOVED = 5e-4

pytestmark = pytest.mark.timeout(900)


def cases() -> list[object]:
    """The whole matrix, each with the suite that it is of."""
    every = {(recipe, stopped, to) for recipe in RECIPES for stopped, tos in WHOLE.items() for to in tos}
    every |= {
        (kind, stopped, to) for kind, of_kind in FURTHER.items() for stopped, tos in of_kind.items() for to in tos
    }
    return [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow if case in SLOW else pytest.mark.soak)
        for case in sorted(every | QUICK | SLOW)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Elastic:
    return Elastic(tmp_path_factory.mktemp("elastic"))


@pytest.mark.parametrize(("kind", "stopped", "to"), cases())
def test_a_stopped_run_goes_on_as_if_left_alone(runs: Elastic, kind: str, stopped: str, to: str) -> None:
    alone, resumed = runs.run(kind, "one"), runs.run(kind, to, stopped=stopped)
    wanted, found = samples_of_steps(alone), samples_of_steps(resumed)
    assert list(wanted) == list(range(1, STEPS + 1))
    assert found == {step: wanted[step] for step in range(STOPPED_AT + 1, STEPS + 1)}
    assert samples_of_steps(runs.run(kind, stopped)) == wanted

    moved = largest_gap(tensors(alone, "model", 1), tensors(alone, "model"))
    gap = largest_gap(tensors(alone, "model"), tensors(resumed, "model"))
    of_losses = [abs(one - other) for one, other in zip(losses(alone), losses(resumed), strict=True)]
    print(f"| {kind} | {stopped} | {to} | {gap:.0e} of {moved:.0e} | {max(of_losses):.0e} |")
    assert gap < TOLERANCE < LEAST_MOVED < moved
    assert max(of_losses) < TOLERANCE
    for state in Checkpoint(resumed / "run" / "checkpoints" / f"step-{STEPS:08d}").kinds:
        assert largest_gap(tensors(alone, state), tensors(resumed, state)) < TOLERANCE
    if kind.startswith("ppo"):
        assert responses(resumed) == responses(alone)


def responses(folder: Path) -> list[tuple[int, int, str]]:
    """What was sampled, in rollouts and evaluations: (of which, number, response)."""
    rows = [json.loads(line) for line in (folder / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    rollouts = [(row["rollout"], row["sample"], row["response"]) for row in rows if "rollout" in row]
    evaluations = [(-1 - row["step"], row["index"], row["response"]) for row in rows if "step" in row]
    assert rollouts and evaluations
    return sorted(rollouts + evaluations)


@pytest.mark.slow
def test_what_draws_by_rank_is_named_when_the_number_of_ranks_changes(tmp_path: Path) -> None:
    recipe, config = pretrain(tmp_path, model={"dropout": 0.1})
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    Launch.named("one")([str(recipe), str(stopped / "run"), str(config)], stopped / "process")
    said = {}
    for name in ("one", "ddpx3"):
        copy_stopped(stopped, tmp_path / name)
        ended = Launch.named(name)(
            [str(recipe), str(tmp_path / name / "run"), str(config)], tmp_path / name / "process"
        )
        said[name] = [line for line in ended.out.splitlines() if line.startswith("dropout: drawn by rank")]
    assert said["one"] == []
    assert said["ddpx3"] == [
        f"dropout: drawn by rank, so 3 processes draw other noise than the 1 that saved step {STOPPED_AT}; samples and "
        "their order stay as they were"
    ]


@pytest.mark.slow
def test_what_an_engine_refuses_of_a_stopped_run_leaves_it_as_it_is(runs: Elastic, tmp_path: Path) -> None:
    recipe, config = pretrain(runs.folder / "ema", train={"ema_decay": 0.9})
    copy_stopped(runs.run("ema", "ddpx2"), tmp_path / "copy")
    before = sorted(path.name for path in (tmp_path / "copy" / "run" / "checkpoints").iterdir())
    ended = Launch.named("zero3x2").attempt(
        [str(recipe), str(tmp_path / "copy" / "run"), str(config)], tmp_path / "copy" / "process"
    )
    assert ended.code == 2 and "Traceback" not in ended.err
    assert "ema does not work under zero3: no rank holds whole weights there; use " in ended.err
    assert sorted(path.name for path in (tmp_path / "copy" / "run" / "checkpoints").iterdir()) == before
