"""Runs of every recipe that are stopped under one launch and go on under another, for the elastic tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_chat
import tiny_pairs
import tiny_rl
import tiny_run
from launch import LIMIT_SECONDS, attempt, ended_well, options_of
from tiny_run import PRETRAIN, RLHF, SFT, Ended, fork, metrics, run_script
from torch import Tensor

from llmtrain.train.checkpoint import Checkpoint

WORKER = Path(__file__).with_name("elastic_worker.py")
STEPS, STOPPED_AT = 8, 2  # of PPO, two rollouts of two passes over two minibatches: the stop is inside the first
STEP_SECTIONS: dict[str, Any] = {
    # Five packs a step: ranks have unequally many, and of four ranks three get an empty microbatch.
    "train": {"steps": STEPS, "global_batch_tokens": 5 * 128, "microbatch_tokens": 128},
    "optim": {"lr": 1e-3, "warmup_steps": 2},
    "eval": {"every": 4},
    "checkpoint": {"every": 1, "keep": STEPS + 1},
    "log": {"every": 1, "report": False},
}
POLICY_SECTIONS: dict[str, Any] = {
    # Seven prompts: ranks have unequally many, in each minibatch too.
    "policy": {"kl_coef": 0.05, "kl_target": 1.0, "kl_horizon": 500},
    "rollout": {"num_prompts": 7, "samples_per_prompt": 2, "max_new_tokens": 8, "minibatches": 2},
    "train": {"steps": STEPS, "microbatch_tokens": 16},
    "optim": {"lr": 1e-3, "max_grad_norm": 0.5},
    **{name: STEP_SECTIONS[name] for name in ("eval", "checkpoint", "log")},
}
LORA = {"adapter": {"kind": "lora", "rank": 4}}


@dataclass(frozen=True)
class Launch:
    """A configuration of recipes/accelerate and a number of processes; no configuration: one process."""

    config: str | None
    num_processes: int = 1

    @classmethod
    def named(cls, name: str) -> Launch:
        """`one`, or an engine and a number of processes: `zero2x3`."""
        if name == "one":
            return cls(None)
        engine, _, num_processes = name.rpartition("x")
        config = {"ddp": "cpu", "zero2": "cpu_zero2", "zero3": "cpu_zero3"}.get(engine, engine)
        return cls(config, int(num_processes))

    def __call__(self, arguments: list[str], output: Path) -> Ended:
        """Run the worker; raises AssertionError where it fails."""
        return ended_well(self.attempt(arguments, output))

    def attempt(self, arguments: list[str], output: Path) -> Ended:
        if self.config is None:
            return fork(run_script, WORKER, arguments, output=output).wait(LIMIT_SECONDS)
        return attempt(options_of(self.config, self.num_processes), WORKER, arguments, output=output)


@dataclass(frozen=True)
class Elastic:
    """The inputs of every kind of run, and its runs so far."""

    folder: Path

    def run(self, kind: str, launch: str, *, stopped: str | None = None) -> Path:
        """The folder of a whole run under a launch, or of one `stopped` after STOPPED_AT under another; made once."""
        folder = self.folder / kind / (launch if stopped is None else f"{stopped}-{launch}")
        if not folder.exists():
            recipe, config = KINDS[kind](self._inputs(kind))
            making = folder.with_name(f"{folder.name}.making")  # a run that fails is not taken for one that ended
            shutil.rmtree(making, ignore_errors=True)
            if stopped is not None:
                copy_stopped(self.run(kind, stopped), making)
            else:
                making.mkdir()
            run = str(making / "run")
            ended = Launch.named(launch)([str(recipe), run, str(config)], making / "process")
            if stopped is not None:
                assert f"resumed at step {STOPPED_AT} from" in ended.out
            making.rename(folder)
        return folder

    def _inputs(self, kind: str) -> Path:
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def copy_stopped(whole: Path, folder: Path) -> None:
    """A run as it is if it was killed after the checkpoint of STOPPED_AT."""
    folder.mkdir()
    shutil.copytree(whole / "run", folder / "run", ignore=shutil.ignore_patterns("model", "finished.yaml"))
    for step in range(STOPPED_AT + 1, STEPS + 1):
        shutil.rmtree(checkpoint(folder, step))


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "run" / "checkpoints" / f"step-{step:08d}"


def pretrain(inputs: Path, **more: Any) -> tuple[Path, Path]:
    if not (config := inputs / "config.yaml").exists():
        sections = {name: STEP_SECTIONS.get(name, {}) | more.get(name, {}) for name in {**STEP_SECTIONS, **more}}
        sections["train"] |= {"global_batch_tokens": 5 * 32, "microbatch_tokens": 32}
        tokenizer = tiny_run.write_tokenizer(inputs / "tokenizer")
        corpus = tiny_run.write_corpus(inputs / "corpus.jsonl", seed=1)
        tiny_run.write_config(inputs, tokenizer, [corpus], **sections)
    return PRETRAIN, config


def sft(inputs: Path) -> tuple[Path, Path]:
    if not (config := inputs / "config.yaml").exists():
        model, rows = tiny_chat.write_model(inputs / "model"), tiny_chat.write_rows(inputs / "rows.jsonl", seed=1)
        tiny_chat.write_config(inputs, model, [rows], **STEP_SECTIONS, **LORA)
    return SFT, config


def pairs(inputs: Path, **sections: Any) -> tuple[Path, Path]:
    if not (config := inputs / "config.yaml").exists():
        model = tiny_chat.write_model(inputs / "model", spread=0.1)
        rows = tiny_pairs.write_pairs(inputs / "pairs.jsonl", seed=1)
        tiny_chat.write_config(inputs, model, [rows], data={"eval_fraction": 0.2}, **STEP_SECTIONS, **sections)
    return RLHF, config


def policy(inputs: Path, **more: Any) -> tuple[Path, Path]:
    if not (config := inputs / "config.yaml").exists():
        sections = {name: section | more.pop(name, {}) for name, section in POLICY_SECTIONS.items()}
        tiny_rl.write_config(inputs, tiny_rl.write_task(inputs / "task"), **sections, **more)
    return RLHF, config


KINDS: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "pretrain": pretrain,
    "sft": sft,
    "reward": lambda inputs: pairs(inputs, reward={"centering": 0.01}),
    "dpo": lambda inputs: pairs(inputs, preference={}, **LORA),
    "ppo": policy,
    "ema": lambda inputs: pretrain(inputs, train={"ema_decay": 0.9}),
    "muon": lambda inputs: pretrain(inputs, optim={"name": "muon"}),
    "kto": lambda inputs: pairs(inputs, preference={"loss": "kto"}),
    "ppo-few": lambda inputs: policy(inputs, rollout={"num_prompts": 2}),  # some ranks have no prompt at all
    "ppo-lora": lambda inputs: policy(inputs, policy={"critic": "separate"}, **LORA),
}
"""What is trained -> its recipe and configuration, with the inputs of both in a folder."""


def samples_of_steps(folder: Path) -> dict[int, list[int]]:
    """Step -> the samples that all ranks took in it; where it was taken twice, the last time."""
    steps: dict[int, list[int]] = {}
    for file in folder.glob("samples-*.jsonl"):
        of_rank = {row["step"]: row["samples"] for row in map(json.loads, file.read_text().splitlines())}
        for step, samples in of_rank.items():
            steps.setdefault(step, []).extend(samples)
    return {step: sorted(samples) for step, samples in sorted(steps.items())}


def losses(folder: Path) -> list[float]:
    """Every loss of training, then every held-out one."""
    rows = metrics(folder / "run")
    return [row[name] for name in ("loss", "eval_loss") for row in rows if name in row]


def tensors(folder: Path, kind: str, step: int = STEPS) -> dict[str, Tensor]:
    return Checkpoint(checkpoint(folder, step)).read_all(kind)


def largest_gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two states, absolute."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
