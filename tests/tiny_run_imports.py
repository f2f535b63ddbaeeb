"""Imported once by the process that `tiny_run.fork` forks from: what recipes and engines import."""

import runpy
from pathlib import Path

import accelerate.commands.launch
import deepspeed
import peft
import torch._dynamo
import torch.distributed.run

__all__ = ["accelerate", "deepspeed", "peft", "torch"]

runpy.run_path(str(Path(__file__).resolve().parents[1] / "recipes" / "pretrain.py"), run_name="imported")
runpy.run_path(str(Path(__file__).resolve().parents[1] / "recipes" / "rlhf.py"), run_name="imported")
