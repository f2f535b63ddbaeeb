"""Starts real processes for the tests: `accelerate launch` with a configuration of recipes/accelerate, or one plain."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 240  # DeepSpeed builds an extension of about a minute when it first runs on a CPU


def launch(
    script: Path,
    arguments: Sequence[str],
    *,
    config: str | None,
    num_processes: int = 2,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a script under recipes/accelerate/CONFIG.yaml; None: in one process, without a launcher."""
    command = [sys.executable, str(script), *arguments]
    if config is not None:
        file = ROOT / "recipes" / "accelerate" / f"{config}.yaml"
        options = ["--config_file", str(file), "--num_processes", str(num_processes), "--main_process_port", "0"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        env=clean_environment() | dict(environment or {}),
    )


def clean_environment() -> dict[str, str]:
    """This environment without what another launcher may have left, offline, one thread a process."""
    ours = ("ACCELERATE_", "FSDP_", "MASTER_", "LOCAL_", "GROUP_", "TORCHELASTIC_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in ("RANK", "WORLD_SIZE")}
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "default"}
