"""The runtime in one process: what a step does, what is refused, what a launch may not quietly become."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from llmtrain.train import runtime as runtime_module
from llmtrain.train.engines.capabilities import CAPABILITIES, ENGINES, NEED_CUDA, Engine
from llmtrain.train.engines.launch import check_deepspeed, check_environment, check_outcome, cpu_threads
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
    model, optimizer = prepared(runtime)
    runtime.backward(model, model(torch.tensor([3.0, 0.0, 0.0])).sum(), last=False)
    runtime.backward(model, model(torch.tensor([0.0, 4.0, 0.0])).sum(), last=True)
    result = runtime.step(model, optimizer)
    assert result.applied and result.grad_norm == 5.0
    assert weight(model) == pytest.approx([1 - 1.5, 1 - 2.0, 1.0], abs=1e-6)


def test_without_clipping_the_gradient_is_as_it_is() -> None:
    runtime = make_runtime(max_grad_norm=None)
    model, optimizer = prepared(runtime)
    runtime.backward(model, model(torch.tensor([3.0, 4.0, 0.0])).sum(), last=True)
    assert runtime.step(model, optimizer).grad_norm == 5.0
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
            runtime.backward(model, spoil(share) if i == bad else share, last=i == 1)
        return runtime.step(model, optimizer).applied

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
    model, optimizer = prepared(runtime)
    before = weight(model)
    runtime.backward(model, model(torch.tensor([1e38, 0.0, 0.0])).sum(), last=True)
    assert not runtime.step(model, optimizer).applied
    assert weight(model) == before
    runtime.backward(model, model(torch.tensor([0.5, 0.0, 0.0])).sum(), last=True)
    result = runtime.step(model, optimizer)
    assert result.applied and result.grad_norm == 0.5
    assert weight(model) == pytest.approx([0.5, 1.0, 1.0])
    saved = runtime.scaler_state()
    assert saved is not None and saved["scale"] == 512.0
    runtime._accelerator.scaler.update(4.0)
    runtime.load_scaler_state(saved)
    assert runtime._accelerator.scaler.get_scale() == 512.0


def state(runtime: Runtime, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{n}/{k}": value for n, tensors in runtime.named_state(model, optimizer) for k, value in tensors.items()}


def test_the_learning_rate_is_set_for_each_group() -> None:
    runtime = make_runtime(max_grad_norm=None)
    one, two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for layer in (one, two):
        nn.init.zeros_(layer.weight)
    groups = [{"params": [one.weight]}, {"params": [two.weight]}]
    model, optimizer = runtime.prepare(nn.ModuleList([one, two]), torch.optim.SGD(groups, lr=9.0))
    runtime.set_lr(optimizer, [0.5, 0.25])
    x = torch.ones(1)
    runtime.backward(model, (one(x) + two(x)).sum(), last=True)
    runtime.step(model, optimizer)
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
    model, optimizer = runtime.prepare(weights, torch.optim.SGD(weights.parameters(), lr=1.0))
    for number, weight in enumerate(weights):
        share = weight.sum() + (math.inf if number == bad else 0.0)
        runtime.backward(model, share.clamp(min=5.0, max=5.0) if number != bad else share, last=number == 1)
    assert not runtime.step(model, optimizer).applied
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


def test_a_feature_that_the_engine_lacks_is_refused_by_name() -> None:
    runtime = make_runtime()
    runtime.require({name: name not in NEED_CUDA for name in CAPABILITIES})
    runtime.engine = "zero3"
    runtime.require(dict.fromkeys(CAPABILITIES, False))
    with pytest.raises(ValueError, match=r"ema does not work under zero3: .*; use single or ddp or zero1 or zero2"):
        runtime.require({"ema": True, "muon": False})


@pytest.mark.parametrize("feature", NEED_CUDA)
def test_what_needs_an_nvidia_gpu_is_refused_on_a_cpu(feature: str) -> None:
    with pytest.raises(ValueError, match=f"{feature} needs an NVIDIA GPU, this is cpu"):
        make_runtime().require({feature: True})


def test_ema_under_zero_needs_fp32() -> None:
    runtime = make_runtime(precision="bf16")
    runtime.engine = "zero2"
    with pytest.raises(ValueError, match="ema does not work under zero2: the model's own weights are bf16"):
        runtime.require({"ema": True})


def test_every_feature_says_of_every_engine_whether_it_works() -> None:
    assert get_args(Engine) == ENGINES
    assert all(set(cells) == set(ENGINES) for cells in CAPABILITIES.values())


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.precision=fp16 needs a GPU"):
        make_runtime(precision="fp16")


def test_a_tracker_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log\.trackers names no_such_tracker, which is not installed"):
        make_runtime(trackers=["no_such_tracker"])


def test_a_folder_named_like_a_tracker_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="some_tracker, which is not installed"):
        make_runtime(trackers=["some_tracker"])


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


LAUNCHER = {"ACCELERATE_MIXED_PRECISION": "no"}
SPAWNED = LAUNCHER | {"MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        (LAUNCHER | {"OMP_NUM_THREADS": "1"}, 6),
        (SPAWNED | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 3),
        (SPAWNED | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "8"}, 1),
        (LAUNCHER | {"OMP_NUM_THREADS": "4"}, None),  # asked for
        ({"OMP_NUM_THREADS": "1"}, None),  # not launched
    ],
)
def test_a_process_that_was_left_one_thread_takes_its_share_of_the_cores(
    environment: dict[str, str], threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpu_threads(environment) == threads


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (SPAWNED | {"ACCELERATE_USE_CPU": "True", "ACCELERATE_USE_DEEPSPEED": "true"}, "use_cpu must be false"),
        (SPAWNED | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP needs a GPU"),
        (LAUNCHER | {"MASTER_ADDR": "127.0.0.1"}, "several processes were asked for and one was started"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, but this process was not started as one of several"),
        (SPAWNED | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient_accumulation_steps=4"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision: bf16 .* train.precision is fp32"),
        (LAUNCHER | {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "use train.compile instead"),
        (SPAWNED | {"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, "zero3_init_flag"),
        (SPAWNED | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use train.activation_checkpointing instead"),
    ],
)
def test_a_launch_that_would_fall_back_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_environment(environment, precision="fp32", has_accelerator=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("environment", [{}, LAUNCHER, SPAWNED, SPAWNED | {"ACCELERATE_USE_DEEPSPEED": "true"}])
def test_a_plain_launch_is_fine(environment: dict[str, str]) -> None:
    check_environment(environment, precision="bf16", has_accelerator=False)


def test_what_accelerate_made_of_a_launch_is_checked() -> None:
    zero = SPAWNED | {"ACCELERATE_USE_DEEPSPEED": "true"}
    check_outcome({}, engine="single", world_size=1)
    check_outcome(zero, engine="zero2", world_size=2)
    with pytest.raises(ValueError, match="2 processes were started, but this one trains in a group of 1"):
        check_outcome(SPAWNED, engine="single", world_size=1)
    with pytest.raises(ValueError, match="accelerate made ddp of it"):
        check_outcome(zero, engine="ddp", world_size=2)


def test_fsdp1_is_refused() -> None:
    with pytest.raises(ValueError, match="fsdp_version must be 2"):
        check_environment(SPAWNED | {"ACCELERATE_USE_FSDP": "true"}, precision="fp32", has_accelerator=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gradient_clipping": 0.5}, "gradient_clipping: 0.5 .* optim.max_grad_norm is 1.0"),
        ({"gradient_accumulation_steps": 8}, "gradient_accumulation_steps: 8"),
        ({"bf16": {"enabled": True}}, "bf16 is enabled .* train.precision is fp32"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer_device: cpu"),
        ({"optimizer": {"type": "AdamW"}}, "has a section optimizer: remove it"),
    ],
)
def test_a_deepspeed_configuration_that_contradicts_ours_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_deepspeed(config, max_grad_norm=1.0, precision="fp32")


def test_a_deepspeed_configuration_that_agrees_is_fine() -> None:
    check_deepspeed({"gradient_clipping": 1.0, "bf16": {"enabled": "auto"}}, max_grad_norm=1.0, precision="fp32")
    check_deepspeed({"gradient_clipping": "auto"}, max_grad_norm=None, precision="bf16")


def test_one_process_needs_no_deepspeed() -> None:
    code = (
        "import sys, torch\n"
        "from llmtrain.train.runtime import Runtime\n"
        "r = Runtime(precision='fp32', max_grad_norm=1.0, seed=0, timeout_minutes=1)\n"
        "m = torch.nn.Linear(2, 2)\n"
        "m, o = r.prepare(m, torch.optim.AdamW(m.parameters()))\n"
        "r.backward(m, m(torch.ones(2)).sum(), last=True); r.step(m, o); list(r.named_state(m, o))\n"
        "assert 'deepspeed' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_no_other_module_imports_accelerate_or_deepspeed() -> None:
    package = Path(runtime_module.__file__).parents[1]
    importers = {
        file.name
        for file in package.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith(("import accelerate", "from accelerate", "import deepspeed", "from deepspeed"))
    }
    assert importers == {"runtime.py", "state.py", "whole_weights.py"}


@pytest.mark.parametrize("launched", [False, True])
def test_a_process_of_a_launch_ends_without_taking_itself_apart(launched: bool) -> None:
    code = (
        "import atexit; from llmtrain.recipes.command import command\n"
        "atexit.register(print, 'taken apart')\n"
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
        ["written"] if launched else ["written", "taken apart"],
    )
