"""The demo with a few steps per stage, in any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny_run import ROOT, environment

DEMO = ROOT / "recipes" / "demo.py"
FEW = {"log.every": "2", "eval.every": "null", "checkpoint.every": "null", "optim.warmup_steps": "0"}
STAGES = {
    "pretrain": {"train.steps": "6", "eval.tokens": "4096"},
    "sft": {"train.epochs": "null", "train.steps": "4", "eval.tokens": "4096"},
    "reward": {"train.epochs": "null", "train.steps": "4", "eval.tokens": "8192"},
    "policy": {"train.steps": "2", "rollout.num_prompts": "8", "rollout.eval_prompts": "8", "rollout.minibatches": "1"},
}
OVERRIDES = [f"{stage}.{key}={value}" for stage, given in STAGES.items() for key, value in (FEW | given).items()]


def run_demo(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run the demo in a folder by its command line."""
    command = [sys.executable, str(DEMO), *OVERRIDES, *overrides]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command, cwd=folder, env=environment() | {"PATH": path}, capture_output=True, text=True, check=False
    )
