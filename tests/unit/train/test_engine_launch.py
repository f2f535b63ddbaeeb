"""What a launch may not quietly become, and the threads that a process takes."""

from __future__ import annotations

import os

import pytest

from llmtrain.train.engines.deepspeed import check_deepspeed
from llmtrain.train.engines.launch import check_environment, check_outcome, cpu_threads

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
        (LAUNCHER | {"MASTER_ADDR": "127.0.0.1"}, "several processes were requested but only one was started"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "srun started 2 tasks, each of which would train the whole run alone"),
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


@pytest.mark.parametrize(
    "environment",
    [
        SPAWNED | {"SLURM_STEP_NUM_TASKS": "2"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "0"},  # a batch script
        {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS": "4"},  # of an array
        {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},  # srun -n1, a shell of salloc
    ],
)
def test_one_process_of_a_slurm_job_is_fine(environment: dict[str, str]) -> None:
    check_environment(environment, precision="fp32", has_accelerator=False)


@pytest.mark.parametrize("environment", [{}, LAUNCHER, SPAWNED, SPAWNED | {"ACCELERATE_USE_DEEPSPEED": "true"}])
def test_a_plain_launch_is_fine(environment: dict[str, str]) -> None:
    check_environment(environment, precision="bf16", has_accelerator=False)


def test_what_accelerate_made_of_a_launch_is_checked() -> None:
    zero = SPAWNED | {"ACCELERATE_USE_DEEPSPEED": "true"}
    check_outcome({}, engine="single", world_size=1)
    check_outcome(zero, engine="zero2", world_size=2)
    with pytest.raises(ValueError, match="2 processes were started, but this one trains in a group of 1"):
        check_outcome(SPAWNED, engine="single", world_size=1)
    with pytest.raises(ValueError, match="accelerate set up ddp"):
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
