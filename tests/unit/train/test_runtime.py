"""The runtime in one process: what a step does, what is summed, what is refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmtrain.train import runtime as runtime_module
from llmtrain.train.runtime import Runtime


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def make_runtime(**changes: Any) -> Runtime:
    settings: dict[str, Any] = {"precision": "fp32", "max_grad_norm": 1.0, "seed": 0, "timeout_minutes": 1}
    return Runtime(**settings | changes)


def prepared(runtime: Runtime) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    return runtime.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))


def weight(model: nn.Module) -> list[float]:
    return next(model.parameters()).flatten().tolist()


def test_gradients_of_microbatches_add_up_and_are_clipped_to_the_norm() -> None:
    runtime = make_runtime(max_grad_norm=2.5)
    model, _ = prepared(runtime)
    with runtime.microbatch(last=False):
        runtime.backward(model(torch.tensor([3.0, 0.0, 0.0])).sum())
    with runtime.microbatch(last=True):
        runtime.backward(model(torch.tensor([0.0, 4.0, 0.0])).sum())
    result = runtime.step()
    assert result.applied and result.grad_norm == 5.0
    assert weight(model) == pytest.approx([1 - 1.5, 1 - 2.0, 1.0], abs=1e-6)


def test_without_clipping_the_gradient_is_as_it_is() -> None:
    runtime = make_runtime(max_grad_norm=None)
    model, _ = prepared(runtime)
    with runtime.microbatch(last=True):
        runtime.backward(model(torch.tensor([3.0, 4.0, 0.0])).sum())
    assert runtime.step().grad_norm == 5.0
    assert weight(model) == [-2.0, -3.0, 1.0]


def nan_loss(share: Tensor) -> Tensor:
    return share * math.nan


def infinite_loss_with_a_finite_gradient(share: Tensor) -> Tensor:
    return share + math.inf


def nan_gradient_with_a_finite_loss(share: Tensor) -> Tensor:
    return share + (share * 0).abs().sqrt()


@pytest.mark.parametrize("spoil", [nan_loss, infinite_loss_with_a_finite_gradient, nan_gradient_with_a_finite_loss])
@pytest.mark.parametrize("spoiled", [0, 1])
def test_a_step_that_is_not_finite_changes_nothing_and_leaves_no_gradient(spoil, spoiled) -> None:
    runtime = make_runtime()
    model = nn.Linear(3, 1, bias=False)
    model, optimizer = runtime.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    batch = torch.tensor([0.1, 0.2, 0.3])

    def step(bad: int | None) -> bool:
        for i in range(2):
            share = model(batch * (i + 1)).sum()
            with runtime.microbatch(last=i == 1):
                runtime.backward(spoil(share) if i == bad else share)
        return runtime.step().applied

    assert step(bad=None)
    before = {key: value.clone() for key, value in state(runtime, model, optimizer).items()}
    assert not step(bad=spoiled)
    after = state(runtime, model, optimizer)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert step(bad=None)
    assert state(runtime, model, optimizer)["weight/step"] == 2


def test_a_loss_scaler_skips_an_overflow_lowers_its_scale_and_is_restored() -> None:
    runtime = make_runtime()
    runtime._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # what accelerate makes for fp16
    model, _ = prepared(runtime)
    before = weight(model)
    with runtime.microbatch(last=True):
        runtime.backward(model(torch.tensor([1e38, 0.0, 0.0])).sum())
    assert not runtime.step().applied
    assert weight(model) == before
    with runtime.microbatch(last=True):
        runtime.backward(model(torch.tensor([0.5, 0.0, 0.0])).sum())
    result = runtime.step()
    assert result.applied and result.grad_norm == 0.5
    assert weight(model) == pytest.approx([0.5, 1.0, 1.0])
    saved = runtime.scaler_state()
    assert saved is not None and saved["scale"] == 512.0
    runtime._accelerator.scaler.update(4.0)
    runtime.load_scaler_state(saved)
    assert runtime._accelerator.scaler.get_scale() == 512.0


def state(runtime: Runtime, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{n}/{k}": value for n, tensors in runtime.named_state() for k, value in tensors.items()}


def test_the_learning_rate_is_set_for_each_group() -> None:
    runtime = make_runtime(max_grad_norm=None)
    one, two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for layer in (one, two):
        nn.init.zeros_(layer.weight)
    groups = [{"params": [one.weight]}, {"params": [two.weight]}]
    _, optimizer = runtime.prepare(nn.ModuleList([one, two]), torch.optim.SGD(groups, lr=9.0))
    runtime.set_lr(optimizer, [0.5, 0.25])
    x = torch.ones(1)
    with runtime.microbatch(last=True):
        runtime.backward((one(x) + two(x)).sum())
    runtime.step()
    assert (one.weight.item(), two.weight.item()) == (-0.5, -0.25)


def test_counts_are_summed_by_name_and_carry_the_stop_flag() -> None:
    runtime = make_runtime()
    totals, stop = runtime.sum_counts([{"tokens": 3, "pairs": 1}, {"tokens": 4, "pairs": 0}], stop=True)
    assert (totals, stop) == ({"tokens": 7.0, "pairs": 1.0}, True)


def test_a_step_that_trains_on_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="a step has no tokens to train on"):
        make_runtime().sum_counts([{"tokens": 0}, {"tokens": 0}], stop=False)


def test_metrics_are_summed_over_microbatches() -> None:
    parts = [{"loss": torch.tensor(0.25), "z": torch.tensor(1.0)}, {"loss": torch.tensor(0.5), "z": torch.tensor(2.0)}]
    assert make_runtime().sum_metrics(parts) == {"loss": 0.75, "z": 3.0}


def test_a_metric_that_a_microbatch_does_not_tell_adds_nothing() -> None:
    parts = [{"loss": torch.tensor(0.25), "kl": torch.tensor(1.0)}, {"loss": torch.tensor(0.5), "v": torch.tensor(2.0)}]
    assert make_runtime().sum_metrics(parts) == {"loss": 0.75, "kl": 1.0, "v": 2.0}


@pytest.mark.parametrize("bad", [0, 1])
def test_a_share_that_is_not_finite_drops_the_step_also_where_no_gradient_tells(bad: int) -> None:
    weights = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(2)])
    runtime = make_runtime()
    runtime.prepare(weights, torch.optim.SGD(weights.parameters(), lr=1.0))
    for number, weight in enumerate(weights):
        share = weight.sum() + (math.inf if number == bad else 0.0)
        with runtime.microbatch(last=number == 1):
            runtime.backward(share.clamp(min=5.0, max=5.0) if number != bad else share)
    assert not runtime.step().applied
    assert all(torch.equal(weight, torch.ones(2)) and weight.grad is None for weight in weights)


def test_dropout_is_a_function_of_seed_and_step() -> None:
    def draw(runtime: Runtime, step: int) -> Tensor:
        runtime.seed_step(step)
        return torch.rand(4)

    one, other = make_runtime(seed=1), make_runtime(seed=2)
    first = draw(one, 5)
    assert not torch.equal(first, draw(one, 6))
    assert not torch.equal(first, draw(other, 5))
    assert torch.equal(first, draw(one, 5))


def test_a_feature_that_cannot_work_here_is_refused() -> None:
    make_runtime().require({"ema": True, "quantize": False})
    with pytest.raises(ValueError, match="quantize needs an NVIDIA GPU, this is cpu"):
        make_runtime().require({"quantize": True})


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.precision=fp16 needs a GPU"):
        make_runtime(precision="fp16")


def test_rows_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runtime = make_runtime(trackers=["tensorboard"], run_dir=tmp_path)
    runtime.start_trackers("mine")
    runtime.track({"step": 10, "loss": 2.5}, step=10)
    runtime.track({"loss": 1.5}, step=20)
    runtime.finish()
    events = EventAccumulator(str(tmp_path / "mine"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 2.5), (20, 1.5)]


def test_one_process_needs_no_deepspeed() -> None:
    code = (
        "import sys, torch\n"
        "from llmtrain.train.runtime import Runtime\n"
        "r = Runtime(precision='fp32', max_grad_norm=1.0, seed=0, timeout_minutes=1)\n"
        "m = torch.nn.Linear(2, 2)\n"
        "m, o = r.prepare(m, torch.optim.AdamW(m.parameters()))\n"
        "with r.microbatch(last=True): r.backward(m(torch.ones(2)).sum())\n"
        "r.step(); list(r.named_state())\n"
        "assert 'deepspeed' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def importers(library: str) -> set[str]:
    """The package's modules that import a library."""
    package = Path(runtime_module.__file__).parents[1]
    return {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith((f"import {library}", f"from {library}"))
    }


def test_accelerate_and_deepspeed_are_imported_where_training_is_driven_only() -> None:
    assert importers("deepspeed") == {"train/engines/deepspeed.py"}
    assert {Path(name).parts[0] for name in importers("accelerate")} == {"launch", "train"}


@pytest.mark.parametrize("launched", [False, True])
def test_a_process_of_a_launch_ends_without_exit_handlers(launched: bool) -> None:
    code = (
        "import atexit; from llmtrain.recipes.command import command\n"
        "atexit.register(print, 'closed in order')\n"
        "with command(): print('written')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | ({"WORLD_SIZE": "2"} if launched else {}),
    )
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (
        0,
        ["written"] if launched else ["written", "closed in order"],
    )
