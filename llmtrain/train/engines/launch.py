"""Refuses launches that accelerate would quietly turn into something else than was asked for.

The launcher speaks to the processes through environment variables; each check names the mend. One thing is mended here:
the single thread that `accelerate launch` gives a process on a CPU unasked.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain.system.device import share_of_cores


def check_environment(environment: Mapping[str, str], *, precision: str, has_accelerator: bool) -> None:
    """Raise ValueError where the launcher's settings contradict ours or would fall back.

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
            "several processes were asked for and one was started: accelerate launch starts one with --cpu, "
            "use_cpu: true or distributed_type: MULTI_CPU; use --config_file recipes/accelerate/cpu.yaml"
        )
    if int(environment.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" not in environment:
        raise ValueError(
            f"WORLD_SIZE={environment['WORLD_SIZE']} is set, but this process was not started as one of several: "
            "start it with `accelerate launch` or torchrun, or unset WORLD_SIZE"
        )
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


def cpu_threads(environment: Mapping[str, str]) -> int | None:
    """Threads for a process that the launcher has left one: its share of the cores; None: leave them as they are."""
    was_left_one = "ACCELERATE_MIXED_PRECISION" in environment and environment.get("OMP_NUM_THREADS") == "1"
    return share_of_cores(environment) if was_left_one else None


def check_outcome(environment: Mapping[str, str], *, engine: str, world_size: int) -> None:
    """Raise ValueError where accelerate made something else of the launch, for a reason not foreseen above."""
    asked = int(environment.get("WORLD_SIZE", "1"))
    if asked != world_size:
        raise ValueError(
            f"{asked} processes were started, but this one trains in a group of {world_size}: accelerate did not take "
            "the launch; use a configuration of recipes/accelerate"
        )
    if is_on(environment, "ACCELERATE_USE_DEEPSPEED") != engine.startswith("zero"):
        raise ValueError(
            f"the launch asked for DeepSpeed or did not, and accelerate made {engine} of it: use a configuration of "
            "recipes/accelerate"
        )


def check_deepspeed(config: Mapping[str, object], *, max_grad_norm: float | None, precision: str) -> None:
    """Raise ValueError where a DeepSpeed configuration sets explicitly what ours decides, and differently."""
    clipping = config.get("gradient_clipping", "auto")
    if clipping != "auto" and clipping != (max_grad_norm or 0.0):
        raise ValueError(
            f"gradient_clipping: {clipping} in DeepSpeed's configuration, but optim.max_grad_norm is {max_grad_norm}: "
            "remove it there"
        )
    accumulation = config.get("gradient_accumulation_steps", "auto")
    if accumulation not in ("auto", 1):
        raise ValueError(
            f"gradient_accumulation_steps: {accumulation} in DeepSpeed's configuration: accumulation follows from "
            "train.global_batch_tokens and train.microbatch_tokens; remove it there"
        )
    for dtype in ("bf16", "fp16"):
        section = config.get(dtype)
        enabled = section.get("enabled", False) if isinstance(section, Mapping) else False
        if enabled is True and dtype != precision:
            raise ValueError(
                f"{dtype} is enabled in DeepSpeed's configuration, but train.precision is {precision}: remove it there"
            )
    zero = config.get("zero_optimization")
    for part in ("offload_optimizer", "offload_param"):
        offload = zero.get(part) if isinstance(zero, Mapping) else None
        if isinstance(offload, Mapping) and offload.get("device", "none") != "none":
            raise ValueError(f"{part}_device: {offload['device']}: offloading is not supported yet, set it to none")
    for section_name, ours in (("optimizer", "optim"), ("scheduler", "optim.schedule")):
        if section_name in config:
            raise ValueError(f"DeepSpeed's configuration has a section {section_name}: remove it, {ours} decides")


def is_on(environment: Mapping[str, str], name: str) -> bool:
    """Whether a switch of the launcher is set."""
    return environment.get(name, "false").lower() in ("true", "1", "yes")


def _as_accelerate(precision: str) -> str:
    return "no" if precision == "fp32" else precision
