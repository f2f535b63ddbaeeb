"""From the launcher's environment to accelerate, and a refusal of what accelerate would quietly change.

The launcher passes settings to the processes in environment variables; each check names the fix. One thing is fixed
here: `accelerate launch` gives each process on a CPU a single thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llmtrain.system.cores import share_of_cores
from llmtrain.train.engines.base import EngineSettings


def check_environment(environment: Mapping[str, str], *, precision: str, has_accelerator: bool) -> None:
    """Raise ValueError if the launcher's settings contradict ours or would fall back.

    `precision` is train.precision (fp32, bf16, fp16); `has_accelerator`: whether torch sees a GPU or the like.
    """
    deepspeed, fsdp = is_on(environment, "ACCELERATE_USE_DEEPSPEED"), is_on(environment, "ACCELERATE_USE_FSDP")
    if is_on(environment, "ACCELERATE_USE_CPU") and deepspeed:
        raise ValueError(
            "accelerate would train with plain DDP: with DeepSpeed, use_cpu must be false (it runs on a CPU all the "
            "same, see recipes/accelerate/cpu_zero2.yaml)"
        )
    if fsdp and (not has_accelerator or is_on(environment, "ACCELERATE_USE_CPU")):
        raise ValueError(
            "FSDP needs a GPU: accelerate would train each process alone; on a CPU use "
            "recipes/accelerate/cpu_zero3.yaml"
        )
    if fsdp and environment.get("FSDP_VERSION", "1") != "2":
        raise ValueError("fsdp_version must be 2: FSDP1 is not supported (recipes/accelerate/fsdp2.yaml)")
    launched = "ACCELERATE_MIXED_PRECISION" in environment
    if launched and "MASTER_ADDR" in environment and "LOCAL_RANK" not in environment:
        raise ValueError(
            "several processes were requested but only one was started: accelerate launch starts one with --cpu, "
            "use_cpu: true or distributed_type: MULTI_CPU; use --config_file recipes/accelerate/cpu.yaml"
        )
    if int(environment.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" not in environment:
        raise ValueError(
            f"WORLD_SIZE={environment['WORLD_SIZE']} is set, but this process was not started as one of several: "
            "start it with `accelerate launch` or torchrun, or unset WORLD_SIZE"
        )
    _check_slurm(environment)
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):
        raise ValueError(
            f"gradient_accumulation_steps={steps} in accelerate's configuration: accumulation follows from "
            "train.global_batch_tokens and train.microbatch_tokens; remove it there"
        )
    ours, theirs = _as_accelerate(precision), environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if theirs not in ("no", ours):
        raise ValueError(
            f"mixed_precision: {theirs} in accelerate's configuration, but train.precision is {precision}: remove it "
            f"there, or set train.precision"
        )
    if is_on(environment, "ACCELERATE_DEEPSPEED_ZERO3_INIT"):
        raise ValueError("zero3_init_flag: true draws other initial weights than one process would: set it to false")
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    if backend.upper() != "NO":
        raise ValueError(f"dynamo_backend: {backend} in accelerate's configuration: use train.compile instead")
    if is_on(environment, "FSDP_ACTIVATION_CHECKPOINTING"):
        raise ValueError("fsdp_activation_checkpointing: true: use train.activation_checkpointing instead")


def _check_slurm(environment: Mapping[str, str]) -> None:
    """Raise ValueError for one of several tasks of `srun` that know nothing of each other.

    Only a step's own variables count: SLURM_NTASKS is set too in a batch script, in a job of an array and in a shell of
    `salloc`, where one process runs.
    """
    num_tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "WORLD_SIZE" not in environment and int(num_tasks) > 1:
        raise ValueError(
            f"srun started {num_tasks} tasks, each of which would train the whole run alone: start one launcher per "
            "node, `srun --ntasks-per-node=1 llmtrain launch ...`; for a separate run per task, unset "
            "SLURM_STEP_NUM_TASKS"
        )


def cpu_threads(environment: Mapping[str, str]) -> int | None:
    """Threads for a process that the launcher gave only one: its share of the cores; None: change nothing."""
    got_one = "ACCELERATE_MIXED_PRECISION" in environment and environment.get("OMP_NUM_THREADS") == "1"
    return share_of_cores(environment) if got_one else None


def check_outcome(environment: Mapping[str, str], *, engine: str, world_size: int) -> None:
    """Raise ValueError if accelerate made something else of the launch, for a reason not foreseen above."""
    started = int(environment.get("WORLD_SIZE", "1"))
    if started != world_size:
        raise ValueError(
            f"{started} processes were started, but this one trains in a group of {world_size}: accelerate did not "
            "take the launch; use a configuration of recipes/accelerate"
        )
    if is_on(environment, "ACCELERATE_USE_DEEPSPEED") != engine.startswith("zero"):
        raise ValueError(
            f"accelerate set up {engine}, which contradicts the launcher's DeepSpeed setting: use a "
            "configuration of recipes/accelerate"
        )


def start_accelerator(
    settings: EngineSettings, *, has_accelerator: bool, trackers: Sequence[str], run_dir: Path | None
) -> Accelerator:
    """Join the other processes of the launch. `has_accelerator`: whether torch sees a GPU or the like."""
    uses_deepspeed = is_on(os.environ, "ACCELERATE_USE_DEEPSPEED")
    if not has_accelerator:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
    if uses_deepspeed:
        os.environ.setdefault("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false")
    fsdp = FullyShardedDataParallelPlugin() if is_on(os.environ, "ACCELERATE_USE_FSDP") else None
    if fsdp is not None and settings.precision == "bf16":
        # accelerate's own also rounds outputs: a summed loss of 50,123.4 would come back as 50,176.
        fsdp.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    on_cpu_group = not has_accelerator and "LOCAL_RANK" in os.environ
    accelerator = Accelerator(
        cpu=not has_accelerator and not uses_deepspeed,
        mixed_precision=_as_accelerate(settings.precision),
        gradient_accumulation_steps=1,
        fsdp_plugin=fsdp,
        log_with=list(trackers) or None,
        project_dir=run_dir,
        kwargs_handlers=[
            InitProcessGroupKwargs(backend="gloo" if on_cpu_group else None, timeout=settings.timeout),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )
    unset_hf_deepspeed_config()  # else transformers would make models in shards, each with other weights
    return accelerator


def is_on(environment: Mapping[str, str], name: str) -> bool:
    """Whether a switch of the launcher is set."""
    return environment.get(name, "false").lower() in ("true", "1", "yes")


def _as_accelerate(precision: str) -> str:
    return "no" if precision == "fp32" else precision
