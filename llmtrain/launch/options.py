"""The command line of a launch: options of `accelerate launch` and ours, then the recipe's own.

`--config_file zero3 --num_processes 2 sft CONFIG optim.lr=1e-5` becomes what accelerate parses of
`--config_file .../zero3.yaml ... -m llmtrain sft CONFIG optim.lr=1e-5`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from llmtrain.config.load import read_yaml
from llmtrain.config.shipped import shipped_configs
from llmtrain.launch.slurm import Step, reachable, slurm_step
from llmtrain.system.files import one_line

SAVE_SECONDS = 600
DDP = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: 1
use_cpu: false
"""
"""What is launched without --config_file; accelerate would take one that the user once wrote for something else."""
NEEDS_NO_LAUNCHER = {
    *("cpu", "gpu_ids", "num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"),
    *("deepspeed_multinode_launcher", "training_script", "training_script_args"),
}
"""Options that one process on its own honours, or that say nothing of it."""


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Options as accelerate parses them; raises ValueError for those that it does not know."""
    parser = launch_command_parser()
    parser.add_argument("--save_seconds", type=int, default=SAVE_SECONDS)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            # pdsh, accelerate's own choice, would start processes of other nodes from here; srun has done that.
            options = parser.parse_args(["--deepspeed_multinode_launcher", "standard", *argv])
    except SystemExit:
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(f"{reason}; `llmtrain launch --help` shows what it takes") from None
    for word in options.training_script_args:
        name = word.partition("=")[0]
        if name.startswith("-") and "." not in name:  # `--optim.lr=1e-5` is for the recipe to refuse
            raise ValueError(f"{name}: options of llmtrain launch come before {options.training_script}, not after it")
    return options


def complete(options: argparse.Namespace, environment: Mapping[str, str], scratch: Path) -> None:
    """Fill in what the command line leaves open: the processes of a node, the nodes, where they meet.

    `scratch`: a folder of this launch. Raises ValueError for what cannot be launched.
    """
    config = _config(options, scratch)
    step = None if options.num_machines == 1 or options.machine_rank is not None else slurm_step(environment)
    if step is None:
        options.num_machines = options.num_machines or config.num_machines
        options.machine_rank = options.machine_rank if options.machine_rank is not None else config.machine_rank
        options.main_process_ip = options.main_process_ip or config.main_process_ip
        options.main_process_port = options.main_process_port or config.main_process_port
    else:
        _take_from_slurm(options, step)
    if options.num_machines == 1:
        options.main_process_port = options.main_process_port or 0  # 0: a free one
    elif options.main_process_ip is None or not options.main_process_port:
        raise ValueError(
            f"{options.num_machines} nodes: give --machine_rank, --main_process_ip and --main_process_port, or start "
            "it with srun in a Slurm job"
        )
    options.num_processes = options.num_machines * _processes_per_node(options, config)
    if options.gpu_ids is None:
        options.gpu_ids = config.gpu_ids or "all"


def is_alone(options: argparse.Namespace) -> bool:
    """Whether a launch is of one process, without an engine or another option that a launcher sees to."""
    return bool(options.num_processes == 1 and options.nondefault <= NEEDS_NO_LAUNCHER)  # as accelerate found them


def _config(options: argparse.Namespace, scratch: Path) -> ClusterConfig:
    """The file of --config_file, which may be one of ours by name; DDP without one."""
    given = options.config_file
    if given is None:
        path = scratch / "ddp.yaml"
        path.write_text(DDP, encoding="utf-8")
    else:
        path = Path(shipped_configs("accelerate").get(given, given))
        if not path.is_file():
            known = ", ".join(shipped_configs("accelerate"))
            raise ValueError(f"--config_file {given}: no such file, and not one of {known}")
        options.config_file = str(path)
    read_yaml(path)  # refuses what is not a mapping, which accelerate takes for granted
    try:
        config = load_config_from_file(str(path))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--config_file {path}: accelerate cannot read it: {one_line(error)}") from None
    known_types = (DistributedType.MULTI_GPU, DistributedType.DEEPSPEED, DistributedType.FSDP)
    if not isinstance(config, ClusterConfig) or config.distributed_type not in known_types or config.use_cpu:
        raise ValueError(
            f"--config_file {path}: llmtrain launch starts distributed_type MULTI_GPU (data parallelism, also on a "
            "CPU), DEEPSPEED or FSDP, with use_cpu: false; take a file of recipes/accelerate, or `accelerate launch`"
        )
    return config


def _take_from_slurm(options: argparse.Namespace, step: Step) -> None:
    if options.num_machines not in (None, step.num_nodes):
        raise ValueError(f"--num_machines {options.num_machines}, but srun started launchers on {step.num_nodes} nodes")
    options.num_machines, options.machine_rank = step.num_nodes, step.node_rank
    options.main_process_ip = options.main_process_ip or reachable(step.first_host)
    options.main_process_port = options.main_process_port or step.port


def _processes_per_node(options: argparse.Namespace, config: ClusterConfig) -> int:
    """As many as asked for; else one per GPU; on a CPU what the file has."""
    gpu_ids = options.gpu_ids or config.gpu_ids or "all"
    num_devices = torch.accelerator.device_count() if gpu_ids == "all" else len(str(gpu_ids).split(","))
    asked = options.num_processes
    if asked is not None and asked < 1:
        raise ValueError(f"--num_processes {asked}: must be at least 1")
    if asked is not None and num_devices and asked > num_devices:
        raise ValueError(
            f"--num_processes {asked}: this node has {num_devices} GPUs to use, and each process needs one; it counts "
            "the processes of one node"
        )
    return int(asked or num_devices or max(1, config.num_processes // config.num_machines))


def show_gpus(gpu_ids: str) -> None:
    """Let the processes see these GPUs only; "": none."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu_ids
