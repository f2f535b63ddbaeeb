"""A launch that would fall back is refused with the fix; one with a stuck rank ends and names the rank."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from launch import ROOT, accelerate, attempt, launch, options_of

from llmtrain.train.engines.deepspeed import check_deepspeed

pytestmark = pytest.mark.timeout(400)  # longer than `launch` waits, which then ends what it started

START = """
from llmtrain.train.runtime import Runtime
runtime = Runtime(precision="fp32", max_grad_norm=1.0, seed=0, timeout_minutes={minutes})
"""
STALL = (
    START.format(minutes=0.1)
    + """
import signal
runtime.barrier()
runtime.sum_floats([1.0])
if runtime.rank == 1:
    signal.pause()
runtime.barrier()
"""
)
FINISHED = (
    START.format(minutes=1)
    + """
import gc
import os
import weakref
import torch
model, optimizer = runtime.prepare(module := torch.nn.Linear(2, 2), torch.optim.SGD(module.parameters()))
kept = weakref.ref(model)
runtime.finish()
del runtime, model, module, optimizer
gc.collect()
assert kept() is not None
os._exit(0)
"""
)
SHARDED = """
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from llmtrain.train.engines.state import load_named_state, named_state

dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 2))
fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
optimizer = torch.optim.AdamW([{"params": [p], "lr": 0.1} for p in model.parameters()])

def train(num_steps):
    for step in range(num_steps):
        model(torch.randn(3, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

def snapshot(is_main):
    return {f"{n}/{k}": v.clone() for n, t in named_state(model, optimizer, is_main) for k, v in t.items()}

train(2)
saved = {name: {k: v.clone() for k, v in tensors.items()} for name, tensors in named_state(model, optimizer, True)}
assert saved["0.weight"]["param"].shape == saved["0.weight"]["exp_avg"].shape == (7, 6)
assert isinstance(model[0].weight, DTensor) and model[0].weight.to_local().shape[0] < 7
assert bool(snapshot(dist.get_rank() == 0)) == (dist.get_rank() == 0)
train(2)
wanted = snapshot(True)
load_named_state(model, optimizer, lambda name: dict(saved[name]))
assert all(torch.equal(value, saved[key.split("/")[0]][key.split("/")[1]]) for key, value in snapshot(True).items())
train(2)
assert all(torch.equal(value, wanted[key]) for key, value in snapshot(True).items())
print("sharded state is exact", flush=True)
os._exit(0)  # as a recipe does: closing gloo while another rank leaves can fail
"""


def script(folder: Path, code: str) -> Path:
    file = folder / "script.py"
    file.write_text(code, encoding="utf-8")
    return file


def test_a_stuck_rank_is_named(tmp_path: Path) -> None:
    ended = attempt(options_of("cpu"), script(tmp_path, STALL), output=tmp_path / "process")
    assert ended.code != 0
    (line,) = [line for line in ended.err.splitlines() if line.startswith("stopped: rank 1 (")]
    assert " hangs: waited " in line and "s in barrier for it; it was last seen in sum_floats, at script.py:" in line
    assert line.endswith("raise run.timeout_minutes if it was only slow")


@pytest.mark.parametrize("config", ["cpu", "cpu_zero2"])
def test_what_holds_the_process_group_is_kept_to_the_end(tmp_path: Path, config: str) -> None:
    """Freeing it can wait for good: gloo's destructor joins a thread that waits for the GIL."""
    launch(script(tmp_path, FINISHED), [], config=config, output=tmp_path / "process")


def test_a_launch_of_fsdp_on_a_cpu_is_refused(tmp_path: Path) -> None:
    ended = attempt(options_of("fsdp2"), script(tmp_path, START.format(minutes=1)), output=tmp_path / "process")
    assert ended.code != 0 and "ValueError: FSDP needs a GPU" in ended.err


@pytest.mark.slow
def test_a_launch_that_accelerate_makes_one_process_of_is_refused(tmp_path: Path) -> None:
    ended = accelerate(["--cpu", "--num_processes", "2"], script(tmp_path, START.format(minutes=1)))
    assert ended.code != 0 and "ValueError: several processes were requested but only one was started" in ended.err


def test_state_that_fsdp2_shards_is_saved_whole_and_restored_to_the_bit(tmp_path: Path) -> None:
    ended = launch(script(tmp_path, SHARDED), [], config="cpu", output=tmp_path / "process")
    assert ended.out.count("sharded state is exact") == 2


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_our_configurations(file: Path) -> None:
    config = load_config_from_file(str(file))
    wanted = {"cpu": "MULTI_GPU", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(file.stem, "DEEPSPEED")
    assert config.distributed_type == wanted
    assert not config.use_cpu
    if wanted == "DEEPSPEED":
        (stage,) = re.findall(r"zero(\d)", file.stem)
        assert config.deepspeed_config["zero_stage"] == int(stage)
        assert config.deepspeed_config["deepspeed_multinode_launcher"] == "standard"  # not pdsh
        offload = {"device": "cpu"} if file.stem.endswith("offload") else {"device": "none"}
        check_deepspeed(
            {"zero_optimization": {"stage": int(stage), "offload_param": offload}}, max_grad_norm=1.0, precision="fp32"
        )
