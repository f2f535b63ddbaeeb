"""A run that was killed and resumed is, to the bit, the run that was left alone.

Kill moments are drawn uniformly over the time that a run takes, start-up and export included. A moment is
carried over to a resumed process as how far the run had come by then: the last step logged, and the seconds since.
"""

from __future__ import annotations

import json
import random
import signal
import time
from bisect import bisect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_chat import write_config as write_tuning
from tiny_chat import write_model, write_rows
from tiny_rl import write_config as write_policy
from tiny_rl import write_task
from tiny_run import (
    PRETRAIN,
    RLHF,
    SFT,
    Ended,
    Started,
    metrics,
    start,
    write_config,
    write_corpus,
    write_tokenizer,
)

from llmtrain.train.checkpoint import Checkpoint

NUM_STEPS = 40
OF_THE_CLOCK = ("tokens_per_second", "mfu", "memory_bytes")  # and all seconds


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and two sources of text, a chat model and two of conversations."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tokenizer(folder / "tokenizer")
    write_corpus(folder / "a.jsonl", seed=1)
    write_corpus(folder / "b.jsonl", seed=2, num_documents=80)
    write_model(folder / "chat")
    write_rows(folder / "a_rows.jsonl", seed=1)
    write_rows(folder / "b_rows.jsonl", seed=2, num_rows=40)
    write_task(folder / "task")
    return folder


def write_run(inputs: Path, folder: Path, kind: str) -> Path:
    """A configuration with everything that has a state to lose: of pretraining, of an adapter (`lora`), of PPO."""
    sections: dict[str, Any] = {
        "train": {"steps": NUM_STEPS, "ema_decay": 0.9},
        "optim": {"name": "muon" if kind == "muon" else "adamw", "warmup_steps": 5, "lr": 0.01},
        "eval": {"every": 6},
        "checkpoint": {"every": 5, "keep": 2, "best": True, "export_best": True},
    }
    if kind == "ppo":
        sections["policy"] = {"kl_coef": 0.05, "kl_target": 1.0, "kl_horizon": 500}
        sections["rollout"] = {"minibatches": 3}
        sections["log"] = {"every": 1, "report": False}
        return write_policy(folder, inputs / "task", **sections)
    if kind == "lora":
        sections["adapter"] = {"kind": "lora", "rank": 4, "dropout": 0.1}
        sections["model"] = {"neftune_alpha": 5}
        sources = [
            {"path": str(inputs / f"{name}_rows.jsonl"), "weight": weight} for name, weight in (("a", 3), ("b", 1))
        ]
        return write_tuning(folder, inputs / "chat", sources, **sections)
    sources = [{"path": str(inputs / f"{name}.jsonl"), "weight": weight} for name, weight in (("a", 3), ("b", 1))]
    return write_config(folder, inputs / "tokenizer", sources, model={"dropout": 0.1}, **sections)


def started(config: Path, *overrides: str) -> Started:
    """The recipe that a configuration is for, in a process of its own."""
    sections = yaml.safe_load(config.read_text())
    recipe = RLHF if "policy" in sections else SFT if "adapter" in sections else PRETRAIN
    return start(config, *overrides, recipe=recipe)


def run(config: Path, *overrides: str) -> Ended:
    return started(config, *overrides).wait()


def steps_logged(folder: Path) -> int:
    """The last step with a training row."""
    return max((row["step"] for row in metrics(folder) if "loss" in row), default=0)


def timed_run(config: Path) -> list[float]:
    """Run from start to end; the seconds at which it started (0), logged each step, and ended."""
    folder, process = config.parent / "run", started(config)
    beginning, times = time.monotonic(), [0.0]
    for step in range(1, NUM_STEPS + 1):
        assert process.wait_until(lambda step=step: steps_logged(folder) >= step)
        times.append(time.monotonic() - beginning)
    ended = process.wait()
    assert ended.code == 0, ended.err
    return [*times, time.monotonic() - beginning]


def started_and_brought_to(config: Path, step: int) -> Started:
    process = started(config)
    process.wait_until(lambda: steps_logged(config.parent / "run") >= step)
    return process


def kill_at(config: Path, times: Sequence[float], moment: float) -> None:
    """Kill the run when it has come as far as it was at `moment` of `times`."""
    step = bisect(times, moment) - 1
    seconds = moment - times[step]
    while True:
        process = started_and_brought_to(config, step)
        process.run_for(seconds)
        if process.kill().code != 0:
            return
        seconds /= 2  # it had finished before the moment


def kill_in_save(config: Path, times: Sequence[float], moment: float) -> None:
    """Kill the run inside the first save after `moment` that can be hit."""
    folder = config.parent / "run" / "checkpoints"
    while True:
        process = started_and_brought_to(config, bisect(times, moment) - 1)
        assert process.wait_until(lambda: any(folder.glob("step-*.partial"))), "no save is left to be killed in"
        process.kill()
        if any(folder.glob("step-*.partial")):
            return


def assert_same_run(one: Path, other: Path) -> None:
    """Equal metrics but for the clock, equal checkpoints, equal exported models."""
    assert plain_metrics(one) == plain_metrics(other)
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (other / "checkpoints").iterdir())
    for name in names:
        assert_same_checkpoint(Checkpoint(one / "checkpoints" / name), Checkpoint(other / "checkpoints" / name))
    samples = [folder / "samples.jsonl" for folder in (one, other)]
    if samples[0].exists():
        assert samples[0].read_text() == samples[1].read_text()
    exported = [path.name for path in (one / "model").glob("*.safetensors")]
    assert exported
    for name in exported:
        assert (one / "model" / name).read_bytes() == (other / "model" / name).read_bytes()


def plain_metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [without_clock(json.loads(line)) for line in lines]


def without_clock(values: dict[str, Any]) -> dict[str, Any]:
    return {name: it for name, it in values.items() if name not in OF_THE_CLOCK and not name.endswith("_seconds")}


def assert_same_checkpoint(one: Checkpoint, other: Checkpoint) -> None:
    assert set(one.kinds) == set(other.kinds) == {"model", "optimizer", "ema"}
    assert one.is_best == other.is_best
    for kind in one.kinds:
        mine, theirs = one.read_all(kind), other.read_all(kind)
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), (one.path, kind, name)
    assert plain_state(one) == plain_state(other)


def plain_state(checkpoint: Checkpoint) -> dict[str, Any]:
    state = checkpoint.state
    state["progress"] = without_clock(state["progress"])
    if "metrics" in state["source"]:
        state["source"]["metrics"] = without_clock(state["source"]["metrics"])
    return as_lists(state)


def as_lists(value: Any) -> Any:
    """A state with lists in place of its tensors, which `==` does not compare."""
    if isinstance(value, dict):
        return {name: as_lists(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


def kill_and_compare(inputs: Path, folder: Path, kind: str, seed: int, num_kills: int, num_in_save: int) -> None:
    """A run left alone against one that is killed `num_kills` times, `num_in_save` of them inside a save."""
    print(f"kill moments drawn from seed {seed}")
    drawn = random.Random(seed)
    alone, killed = write_run(inputs, folder / "alone", kind), write_run(inputs, folder / "killed", kind)
    times = timed_run(alone)
    moments = [(drawn.uniform(0, times[-1]), kill_at) for _ in range(num_kills - num_in_save)]
    moments += [(drawn.uniform(0, times[-10]), kill_in_save) for _ in range(num_in_save)]
    for moment, kill in sorted(moments, key=lambda pair: pair[0]):
        print(f"{kill.__name__} {moment:.2f} s of {times[-1]:.2f} s")
        kill(killed, times, moment)
    ended = run(killed)
    assert ended.code == 0, ended.err
    assert_same_run(alone.parent / "run", killed.parent / "run")


@pytest.mark.parametrize(
    "kind", ["adamw", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("muon", "lora", "ppo"))]
)
def test_a_run_killed_three_times_ends_as_the_run_left_alone(inputs: Path, tmp_path: Path, kind: str) -> None:
    kill_and_compare(inputs, tmp_path, kind, random.SystemRandom().randrange(2**32), num_kills=3, num_in_save=1)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["adamw", "muon", "lora", "ppo"])
def test_a_run_killed_ten_times_ends_as_the_run_left_alone(inputs: Path, tmp_path: Path, kind: str) -> None:
    kill_and_compare(inputs, tmp_path, kind, random.SystemRandom().randrange(2**32), num_kills=10, num_in_save=2)


def test_the_comparison_sees_another_dropout_seed(inputs: Path, tmp_path: Path) -> None:
    one, other = write_run(inputs, tmp_path / "one", "adamw"), write_run(inputs, tmp_path / "other", "adamw")
    assert run(one, "train.steps=6").code == run(other, "train.steps=6", "model.dropout=0.11").code == 0
    with pytest.raises(AssertionError):
        assert_same_run(one.parent / "run", other.parent / "run")


@pytest.mark.slow
def test_a_run_killed_while_it_tokenizes_ends_as_the_run_left_alone(inputs: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"kill moments drawn from seed {seed}")
    drawn = random.Random(seed)
    corpus = write_corpus(tmp_path / "large.jsonl", seed=3, num_documents=60_000)
    alone, killed = (
        write_config(tmp_path / name, inputs / "tokenizer", [corpus], train={"steps": 5}, eval={"tokens": 320})
        for name in ("alone", "killed")
    )
    assert run(alone).code == 0
    (built,), cache = (path.parent for path in alone.parent.glob("cache/*/store.json")), killed.parent / "cache"

    def is_built(share: float) -> bool:
        built_bytes = (built / "train.tokens").stat().st_size
        return sum(path.stat().st_size for path in cache.glob("*/train.tokens")) >= share * built_bytes

    for share in sorted(drawn.uniform(0, 0.7) for _ in range(3)):
        process = started(killed)
        assert process.wait_until(partial(is_built, share))
        assert process.kill().code == -signal.SIGKILL
        assert not any(cache.glob("*/store.json"))
    ended = run(killed)
    assert ended.code == 0, ended.err
    assert plain_metrics(alone.parent / "run") == plain_metrics(killed.parent / "run")
    (rebuilt,) = (path.parent for path in cache.glob("*/store.json"))
    for name in ("train.tokens", "train.offsets", "eval.tokens", "eval.offsets"):
        assert (built / name).read_bytes() == (rebuilt / name).read_bytes()
