"""Two real processes under each engine train the weights of one, resume each other, skip bad steps together."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch
from safetensors.torch import load_file
from torch import Tensor

WORKER = Path(__file__).with_name("worker.py")
CONFIGS = {"single": None, "ddp": "cpu", "zero1": "zero1", "zero2": "cpu_zero2", "zero3": "cpu_zero3", "fsdp2": "fsdp2"}
CONFIGS["zero3 with offload"] = "zero3_offload"
FEATURES = {engine: ["--checkpointing"] for engine in ("zero1", "zero2", "zero3", "fsdp2")}
RESUMED_FROM = {"ddp": "single", "zero3": "ddp", "zero2": "zero3", "zero1": "zero2", "fsdp2": "ddp"}
DISTRIBUTED = list(RESUMED_FROM)
TOLERANCE = 1e-6

pytestmark = pytest.mark.timeout(900)  # a test may be the first to ask for a run, and for those that one resumes

Runs = Callable[[str], Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The folder of a full run of the worker under an engine; each is made once, when it is first asked for."""

    @cache
    def run(engine: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / engine
        resume = ["--resume", str(run(RESUMED_FROM[engine]))] if engine in RESUMED_FROM else []
        work(engine, folder, *resume, *FEATURES.get(engine, []))
        return folder

    return run


def work(engine: str, folder: Path, *options: str) -> Path:
    launch(WORKER, [str(folder), *options], config=CONFIGS[engine], output=folder.parent / folder.name)
    return folder


def seen(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "seen.json").read_text(encoding="utf-8"))


def difference(one: Path, other: Path, *, only: str = "") -> float:
    """The largest absolute difference between two saved states."""
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    assert all(left[key].dtype == right[key].dtype for key in left)
    return max(float((left[key] - right[key]).abs().max()) for key in left if key.endswith(only))


@pytest.mark.parametrize("engine", DISTRIBUTED)
def test_the_engine_is_the_one_that_was_asked_for(runs: Runs, engine: str) -> None:
    run = seen(runs(engine))
    assert (run["engine"], run["world_size"]) == (engine, 2)
    names = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPCausalLMLoss"}
    assert run["model_class"] == names.get(engine, "DeepSpeedEngine")
    assert run["reductions"] == (1 if engine == "ddp" else None)  # in a step, not in each of its microbatches
    if engine == "ddp":
        assert run["num_parameters_here"] == run["num_parameters"]
    else:
        assert run["num_parameters_here"] <= 0.51 * run["num_parameters"]


@pytest.mark.parametrize("engine", DISTRIBUTED)
def test_two_processes_train_the_weights_of_one(runs: Runs, engine: str) -> None:
    assert difference(runs(engine) / "final.safetensors", runs("single") / "final.safetensors") < TOLERANCE


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("zero1", marks=pytest.mark.soak),
        *(pytest.param(e, marks=pytest.mark.slow) for e in ("ddp", "zero2")),
    ],
)
def test_two_processes_train_a_compiled_model_as_one_trains_it_uncompiled(
    runs: Runs, tmp_path: Path, engine: str
) -> None:
    run = work(engine, tmp_path / "run", "--compile", *FEATURES.get(engine, []))
    assert difference(run / "final.safetensors", runs("single") / "final.safetensors") < TOLERANCE
    assert difference(run / "ema.safetensors", runs("single") / "ema.safetensors") < TOLERANCE
    assert seen(run)["rolled_back_to_the_bit"]


def test_weights_and_optimizer_state_in_the_nodes_memory_train_the_same(runs: Runs, tmp_path: Path) -> None:
    options = ["--resume", str(runs("ddp")), *FEATURES["zero3"]]
    run = work("zero3 with offload", tmp_path / "run", *options)
    for state in ("final", "resumed"):
        assert difference(run / f"{state}.safetensors", runs("single") / "final.safetensors") < TOLERANCE
    assert seen(run)["engine"] == "zero3" and seen(run)["rolled_back_to_the_bit"] and seen(run)["restored_to_the_bit"]
    assert [step for step, was_applied in enumerate(seen(run)["applied"]) if not was_applied] == [4, 13]


@pytest.fixture(scope="module")
def wrong(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that continues from ZeRO-1's checkpoint, but trains on the mean of microbatch means."""
    folder = tmp_path_factory.mktemp("runs") / "wrong"
    return work("single", folder, "--resume", str(runs("zero1")), "--mean-of-means")


def test_a_mean_of_means_would_be_noticed(runs: Runs, wrong: Path) -> None:
    gap = difference(wrong / "final.safetensors", runs("single") / "final.safetensors", only="/param")
    assert gap > 1000 * TOLERANCE


def test_one_process_resumes_a_sharded_run(runs: Runs, wrong: Path) -> None:
    assert difference(wrong / "resumed.safetensors", runs("single") / "final.safetensors") < TOLERANCE


@pytest.mark.parametrize("engine", ["single", *DISTRIBUTED])
def test_a_bad_step_is_skipped_on_every_rank_and_no_other_is(runs: Runs, engine: str) -> None:
    applied = seen(runs(engine))["applied"]
    assert [step for step, was_applied in enumerate(applied) if not was_applied] == [4, 13]


@pytest.mark.parametrize("engine", ["single", *DISTRIBUTED])
def test_going_back_to_a_checkpoint_is_exact_to_the_bit(runs: Runs, engine: str) -> None:
    run = seen(runs(engine))
    assert run["restored_to_the_bit"]
    assert run["rolled_back_to_the_bit"]


@pytest.mark.parametrize("engine", ["single", *DISTRIBUTED])
def test_buffers_are_saved_as_they_are_and_frozen_weights_are_left_out(runs: Runs, engine: str) -> None:
    state = load_file(runs(engine) / "final.safetensors")
    assert state["model.saved/param"].tolist() == [3.0, 4.0]
    assert "model.model.layers.0.input_layernorm.weight/exp_avg" in state
    assert not [name for name in state if name.startswith("model.model.norm.weight")]


@pytest.mark.parametrize("engine", DISTRIBUTED)
def test_a_checkpoint_of_another_engine_is_resumed(runs: Runs, engine: str) -> None:
    assert difference(runs(engine) / "resumed.safetensors", runs("single") / "final.safetensors") < TOLERANCE


@pytest.mark.parametrize(
    "engine", ["fsdp2", "zero2", *(pytest.param(e, marks=pytest.mark.slow) for e in ("ddp", "zero3"))]
)
def test_a_new_process_of_the_same_engine_resumes_to_the_bit(runs: Runs, tmp_path: Path, engine: str) -> None:
    options = ["--resume", str(runs(engine)), "--only-resume", *FEATURES.get(engine, [])]
    resumed = work(engine, tmp_path / "resumed", *options)
    assert difference(resumed / "resumed.safetensors", runs(engine) / "final.safetensors") == 0.0


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2"])
def test_the_average_of_the_weights_is_that_of_one_process(runs: Runs, engine: str) -> None:
    assert difference(runs(engine) / "ema.safetensors", runs("single") / "ema.safetensors") < TOLERANCE


def test_a_step_of_muon_with_l1_is_that_of_one_process(runs: Runs) -> None:
    assert difference(runs("ddp") / "muon.safetensors", runs("single") / "muon.safetensors") < TOLERANCE


@pytest.mark.parametrize("engine", DISTRIBUTED)
def test_every_process_group_has_our_timeout(runs: Runs, engine: str) -> None:
    timeouts = seen(runs(engine))["timeouts"]
    assert timeouts and set(timeouts) == {2 * 60.0 + 60.0}


@pytest.mark.parametrize("engine", DISTRIBUTED)
def test_ranks_exchange_numbers(runs: Runs, engine: str) -> None:
    run = seen(runs(engine))
    assert run["gathered"] == [[0.0, 0.5], [1.0, 0.5]]
    assert run["any"]


@pytest.mark.parametrize(
    "engine", ["ddp", "fsdp2", *(pytest.param(e, marks=pytest.mark.slow) for e in ("zero2", "zero3"))]
)
def test_in_bf16_weights_follow_those_in_fp32_and_bad_steps_are_skipped(
    runs: Runs, tmp_path: Path, engine: str
) -> None:
    run = work(engine, tmp_path / "run", "--precision", "bf16")
    assert [step for step, was_applied in enumerate(seen(run)["applied"]) if not was_applied] == [4, 13]
    assert seen(run)["rolled_back_to_the_bit"] and seen(run)["loss_has_all_digits"]
    start = weights(runs("single") / "checkpoints" / "step-00000000" / "model-00001.safetensors")
    exact, rounded = weights(runs("single") / "final.safetensors"), weights(run / "final.safetensors")
    moved = sum(float((exact[name] - start[name]).abs().sum()) for name in start)
    apart = sum(float((exact[name] - rounded[name]).abs().sum()) for name in start)
    assert {name for name, tensor in rounded.items() if tensor.dtype != torch.float32} <= {"model.saved"}
    assert apart < 0.1 * moved


def weights(file: Path) -> dict[str, Tensor]:
    tensors = load_file(file)
    return {name.removesuffix("/param"): t for name, t in tensors.items() if "/" not in name or name.endswith("/param")}
