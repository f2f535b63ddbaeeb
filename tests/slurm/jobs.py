"""Runs for the jobs: small enough for two cores, on two nodes of one process each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_chat
import tiny_pairs
import tiny_rl
import tiny_run
import torch
from cluster import NUM_GPUS, Cluster
from safetensors.torch import load_file
from tiny_run import ROOT, metrics

ENGINES = {"ddp": "cpu", "zero3": "cpu_zero3"}
"""Engine -> its file of recipes/accelerate."""
RECIPES = {"pretrain": tiny_run.PRETRAIN, "sft": tiny_run.SFT, "rlhf": tiny_pairs.RLHF}
PLANTS = ROOT / "tests" / "slurm" / "plants"
LIMIT_SECONDS = 400  # DeepSpeed builds an extension of a minute or two when it first runs on a CPU
WAITING_STEP = 5  # not one of those at which the runs save, which are 4, 8 and 10


def write_inputs(folder: Path) -> Path:
    """Data, models and configurations, a folder for each recipe; the folder."""
    tokenizer = tiny_run.write_tokenizer(folder / "tokenizer")
    tiny_run.write_config(folder / "pretrain", tokenizer, [tiny_run.write_corpus(folder / "corpus.jsonl", seed=1)])
    base = tiny_chat.write_model(folder / "base")
    tiny_chat.write_config(folder / "sft", base, [tiny_chat.write_rows(folder / "rows.jsonl", seed=1)])
    task = tiny_rl.write_task(folder / "task")
    few = {"num_prompts": 8, "samples_per_prompt": 2}
    tiny_rl.write_config(folder / "rlhf", task, rollout=few, train={"steps": 6}, eval={"every": 6}, log={"every": 1})
    for engine, name in ENGINES.items():
        text = (ROOT / "recipes" / "accelerate" / f"{name}.yaml").read_text(encoding="utf-8")
        assert "num_processes: 2" in text
        text = text.replace("num_processes: 2", "num_processes: 1")  # of each node
        (folder / f"{engine}.yaml").write_text(text, encoding="utf-8")
    return folder


@dataclass
class Job:
    """A run that jobs train, each by the very script of `slurm/`."""

    slurm: Cluster
    inputs: Path
    folder: Path  # run.dir is in it
    verb: str
    engine: str
    plants: dict[str, Any] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def go(self) -> Path:
        """Once it exists, no fault is planted any more."""
        return self.folder / "go"

    def submit(self) -> str:
        """Submit the script; the number of the job."""
        arguments = [str(self.inputs / self.verb / "config.yaml"), f"run.dir={self.run_dir}"]
        options = [
            "--nodes=2",
            f"--gpus-per-node={NUM_GPUS}",
            "--time=30",
            "--signal=USR1@60",
            f"--chdir={self.folder}",
        ]
        path = os.pathsep.join([str(PLANTS), str(ROOT)] if self.plants else [str(ROOT)])
        return self.slurm.submit(
            self.verb,
            *arguments,
            options=options,
            LLMTRAIN_ACCELERATE=str(self.inputs / f"{self.engine}.yaml"),
            LLMTRAIN_TEST_PLANTS=json.dumps(self.plants),
            PYTHONPATH=path,
        )

    def submit_to_wait(self, *, waiting_ranks: Sequence[int] = (0, 1), slow_save_seconds: int = 0) -> str:
        """Submit, and wait until the ranks wait before WAITING_STEP, as they do until `go` exists; the job's number."""
        self.plants |= {"step": WAITING_STEP, "until": str(self.go), "slow_save_seconds": slow_save_seconds}
        self.plants["waiting_ranks"] = list(waiting_ranks)
        job = self.submit()
        marks = [self.go.with_name(f"{self.go.name}.waiting-{rank}") for rank in waiting_ranks]
        self.slurm.wait_until(
            lambda: all(mark.exists() for mark in marks), LIMIT_SECONDS, f"step {WAITING_STEP} of {job}", job
        )
        return job

    def goes_on_from(self, job: str) -> int:
        """Let a job that is in the queue again start, without a fault; the step that it goes on from, at its end."""
        self.slurm.wait_until(
            lambda: self.slurm.state(job) == "PENDING", LIMIT_SECONDS, f"job {job} to be queued again", job
        )
        self.go.touch()
        # Slurm would let two minutes pass. Within the second of its end, nodes refuse the job as one that has ended.
        # A limit that was meant for the first start could end the second one on a slow machine.
        self.slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+3", f"TimeLimit={LIMIT_SECONDS // 60}")
        return self.ended_after_resuming(job)

    def ended_after_resuming(self, job: str) -> int:
        """The step that a job has gone on from, which has come to its end."""
        assert self.slurm.wait_ended(job) == "COMPLETED", self.slurm.output(job)
        resumed = re.findall(r"resumed at step (\d+) from", self.slurm.output(job))
        assert len(resumed) == 1, self.slurm.output(job)
        return int(resumed[0])

    def saved_steps(self) -> list[int]:
        """The steps of the checkpoints."""
        return sorted(int(path.name[5:]) for path in (self.run_dir / "checkpoints").glob("step-????????"))

    def assert_ends_as(self, left_alone: Path) -> None:
        """Assert that the weights, and the losses of all steps, are those of another run to the bit."""
        assert_same_weights(self.run_dir, left_alone)
        assert losses(self.run_dir) == losses(left_alone)


def assert_same_weights(run: Path, other: Path) -> None:
    """Assert that two runs have exported the same weights to the bit."""
    mine, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, other))
    assert mine.keys() == theirs.keys() and mine
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different


def losses(run: Path) -> dict[int, float]:
    """The loss of each step; each step is there once."""
    rows = [row for row in metrics(run) if "loss" in row]
    found = {row["step"]: row["loss"] for row in rows}
    assert len(found) == len(rows)
    return found
