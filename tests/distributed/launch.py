"""Starts real processes for the tests: `accelerate launch` with a configuration of recipes/accelerate, or one plain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 240  # DeepSpeed builds an extension of about a minute when it first runs on a CPU


def launch(
    script: Path, arguments: Sequence[str], *, config: str | None, num_processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """Run a script under recipes/accelerate/CONFIG.yaml; None: in one process, without a launcher."""
    if config is None:
        return run([sys.executable, str(script), *arguments])
    return run(command(script, arguments, options_of(config, num_processes)))


def accelerate(options: Sequence[str], script: Path, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run `accelerate launch OPTIONS SCRIPT ARGUMENTS`."""
    return run(command(script, arguments, options))


def command(script: Path, arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """`accelerate launch OPTIONS SCRIPT ARGUMENTS`, on a free port."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    return [*launcher, *options, str(script), *arguments]


def options_of(config: str, num_processes: int = 2) -> list[str]:
    """The launcher's options for recipes/accelerate/CONFIG.yaml."""
    file = ROOT / "recipes" / "accelerate" / f"{config}.yaml"
    return ["--config_file", str(file), "--num_processes", str(num_processes)]


def torchrun(script: Path) -> subprocess.CompletedProcess[str]:
    """Two processes without accelerate."""
    return run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)])


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command; where it takes too long, end it with every process it started, and raise TimeoutExpired."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=clean_environment(), start_new_session=True
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher ends its workers, which have sessions of their own
            try:
                process.communicate(timeout=LIMIT_SECONDS)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def clean_environment() -> dict[str, str]:
    """This environment without what another launcher may have left, offline, one thread a process."""
    ours = ("ACCELERATE_", "FSDP_", "MASTER_", "LOCAL_", "GROUP_", "TORCHELASTIC_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in ("RANK", "WORLD_SIZE")}
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "default"}
