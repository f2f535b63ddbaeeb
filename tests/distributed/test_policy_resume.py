"""PPO in two processes, stopped inside a rollout: two resume it to the bit, one to float tolerance."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from launch import clean_environment, command, launch, options_of
from safetensors.torch import load_file
from tiny_rl import write_config, write_task
from tiny_run import RLHF, metrics, run_here

from llmtrain.train.checkpoint import Checkpoint

STEPS = 8  # two rollouts of two passes over two minibatches each
INSIDE_FIRST, INSIDE_LAST = 2, 6

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"))


def write_run(folder: Path, task: Path) -> Path:
    """A configuration with unequally many packs on two ranks, and a checkpoint after each step."""
    return write_config(
        folder,
        task,
        policy={"kl_coef": 0.05, "kl_target": 1.0, "kl_horizon": 500},
        rollout={"num_prompts": 7, "samples_per_prompt": 2, "max_new_tokens": 8, "minibatches": 2},
        train={"steps": STEPS, "microbatch_tokens": 16},
        checkpoint={"every": 1, "keep": STEPS},
        eval={"every": 4},
        log={"every": 1},
    )


@pytest.fixture(scope="module")
def alone(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in two processes that was left alone."""
    config = write_run(tmp_path_factory.mktemp("runs") / "alone", task)
    launch(RLHF, [str(config)], config="cpu", output=config.parent / "process")
    return config.parent


def stopped_after(step: int, alone: Path, folder: Path) -> Path:
    """The configuration of a copy of the run, as if it was killed after the checkpoint of a step."""
    shutil.copytree(alone, folder)
    for config in (folder / "config.yaml", folder / "run" / "config.yaml"):
        config.write_text(config.read_text().replace(str(alone), str(folder)))
    shutil.rmtree(folder / "run" / "model")
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(checkpoint(folder, later))
    assert Checkpoint(checkpoint(folder, step)).state["source"]["remaining"] is not None
    return folder / "config.yaml"


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "run" / "checkpoints" / f"step-{step:08d}"


def assert_same_run(one: Path, other: Path) -> None:
    """Equal weights, optimizer state, samples and exported model."""
    last, again = (Checkpoint(checkpoint(folder, STEPS)) for folder in (one, other))
    for kind in last.kinds:
        wanted, found = last.read_all(kind), again.read_all(kind)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert last.state["source"]["kl"] == again.state["source"]["kl"]
    files = [folder / "run" / "samples.jsonl" for folder in (one, other)]
    assert files[0].read_text() == files[1].read_text()
    exported = [load_file(folder / "run" / "model" / "model.safetensors") for folder in (one, other)]
    assert all(torch.equal(exported[0][name], exported[1][name]) for name in exported[0])


def test_two_processes_resume_to_the_bit(alone: Path, tmp_path: Path) -> None:
    config = stopped_after(INSIDE_FIRST, alone, tmp_path / "stopped")
    ended = launch(RLHF, [str(config)], config="cpu", output=config.parent / "process")
    assert f"resumed at step {INSIDE_FIRST}" in ended.out
    assert_same_run(alone, config.parent)


def test_one_process_goes_on_with_the_experience_of_both(alone: Path, tmp_path: Path) -> None:
    config = stopped_after(INSIDE_LAST, alone, tmp_path / "stopped")
    ended = run_here(config, recipe=RLHF)
    assert (ended.code, ended.err) == (0, "")
    wanted, found = (Checkpoint(checkpoint(folder, STEPS)).read_all("model") for folder in (alone, config.parent))
    start = Checkpoint(checkpoint(alone, INSIDE_LAST)).read_all("model")
    moved = max(float((wanted[name] - start[name]).abs().max()) for name in wanted)
    apart = max(float((wanted[name] - found[name]).abs().max()) for name in wanted)
    assert apart < 1e-6 < 1e-4 < moved
    rows = [[row for row in metrics(folder / "run") if "loss" in row] for folder in (alone, config.parent)]
    losses = [[row["loss"] for row in of_run] for of_run in rows]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_two_processes_killed_five_times_end_as_if_left_alone(alone: Path, task: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"kill moments drawn from seed {seed}")
    drawn = random.Random(seed)
    config = write_run(tmp_path / "killed", task)
    for step in sorted(drawn.choices(range(STEPS), k=5)):
        kill_behind(config, step, drawn.uniform(0, 0.3))
    launch(RLHF, [str(config)], config="cpu", output=config.parent / "process")
    assert_same_run(alone, config.parent)


def kill_behind(config: Path, step: int, seconds: float) -> None:
    """Kill every process of a run some time after it logged a step; a run that was further is killed at once."""
    quiet = subprocess.DEVNULL
    launched = command(RLHF, [str(config)], options_of("cpu"))
    with subprocess.Popen(launched, stdout=quiet, stderr=quiet, env=clean_environment()) as process:
        while process.poll() is None and steps_logged(config.parent / "run") < step:
            time.sleep(0.01)
        time.sleep(seconds)
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for each in [process, *started]:
            each.kill()


def steps_logged(run: Path) -> int:
    return max((row["step"] for row in metrics(run) if "loss" in row), default=0)
