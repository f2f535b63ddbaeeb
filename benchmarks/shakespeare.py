"""Seconds of training to nanoGPT's published loss on character-level Shakespeare, beside nanoGPT's own steps.

    python benchmarks/shakespeare.py INPUT.txt [--work FOLDER] [--seeds N] [key=value ...]

nanoGPT's CPU set-up (its README): 0.8 M parameters, context 64, 12 rows per step, held-out loss 1.88 after 2000 steps.
Ours is `recipes/configs/pretrain_shakespeare_char.yaml` through the real recipe command, once per seed, evaluated on
the whole last tenth of the file, the tenth that nanoGPT holds out. Reported are the `train_seconds` of the first
evaluation at or below 1.88: the time inside optimizer steps, data included, evaluation and start-up left out.

nanoGPT's side is the time of its step, reimplemented here and multiplied by 2000: a GPT of its size (learned
positions, LayerNorm without bias, GELU, tied embeddings, 65 characters), SDPA, random rows from memory, clipping at 1,
AdamW as torch runs it unless asked for its fused form, which nanoGPT does on GPUs only, and the loss read after each
step. Its steps are timed before, between and after our runs, so that a slow minute of the machine meets both; the
median step counts. The loss is not: 1.88 is the published figure.

Further arguments are overrides of the configuration. The last line is JSON; the ratio is ours over nanoGPT's.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

from measure import REPOSITORY, run_python

TARGET_LOSS = 1.88
NANOGPT_STEPS = 2000
TIMED_STEPS = 200  # of nanoGPT's, each time

HERE = Path(__file__).resolve().parent
CONFIG = REPOSITORY / "recipes" / "configs" / "pretrain_shakespeare_char.yaml"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("input", type=Path, help="tinyshakespeare's input.txt")
    options.add_argument("overrides", nargs="*", help="key=value, over the configuration's")
    options.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "benchmark_shakespeare")
    options.add_argument("--seeds", type=int, default=3)
    arguments = options.parse_args()
    source: Path = arguments.input.resolve()
    work: Path = arguments.work.resolve()
    tokenizer = work / "tokenizer"
    run_python(
        [
            REPOSITORY / "tokenizer" / "train.py",
            REPOSITORY / "tokenizer" / "bytes.yaml",
            f"output={tokenizer}",
            f"sources={source}",
        ]
    )

    step_seconds = nanogpt_steps(source)
    seconds = []
    for seed in range(arguments.seeds):
        overrides = [f"run.dir={work / f'seed_{seed}'}", f"run.seed={seed}", *arguments.overrides]
        rows = train(source, tokenizer, overrides, work / f"seed_{seed}")
        seconds.append(report(seed, rows))
        step_seconds += nanogpt_steps(source)
    median, nanogpt = statistics.median(seconds), NANOGPT_STEPS * statistics.median(step_seconds)
    print(f"nanoGPT: {1000 * nanogpt / NANOGPT_STEPS:.1f} ms a step, {nanogpt:.1f} s for {NANOGPT_STEPS} steps")
    print(f"ours: median of {len(seconds)} seeds {median:.1f} s to {TARGET_LOSS}")
    result = {
        "train_seconds_to_1.88": round(median, 2),
        "nanogpt_2000_steps_seconds": round(nanogpt, 2),
        "ratio": round(median / nanogpt, 3),
    }
    print(json.dumps(result))


def train(source: Path, tokenizer: Path, overrides: list[str], run_dir: Path) -> list[dict[str, Any]]:
    """The evaluation rows of a fresh run of the recipe."""
    if run_dir.exists():
        shutil.rmtree(run_dir)
    ours = [f"data.train.path={source}", f"data.eval.path={source}", f"tokenizer.path={tokenizer}"]
    run_python([REPOSITORY / "recipes" / "pretrain.py", CONFIG, *ours, *overrides])
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "eval_loss" in row]


def report(seed: int, rows: list[dict[str, Any]]) -> float:
    """Print where a run reached the target and its best loss; gives its seconds to the target, or infinity."""
    best = min(row["eval_loss"] for row in rows)
    reached = next((row for row in rows if row["eval_loss"] <= TARGET_LOSS), None)
    if reached is None:
        print(f"seed {seed}: best held-out loss {best:.4f}, so {TARGET_LOSS} was not reached", flush=True)
        return math.inf
    print(
        f"seed {seed}: {reached['eval_loss']:.4f} at step {reached['step']} after {reached['train_seconds']:.2f} s "
        f"of training; best held-out loss {best:.4f}, {rows[-1]['train_seconds']:.2f} s in all",
        flush=True,
    )
    return float(reached["train_seconds"])


def nanogpt_steps(source: Path) -> list[float]:
    """Seconds of each of TIMED_STEPS steps, warmed up, in a process of its own."""
    seconds: list[float] = run_python([HERE / "nanogpt_step.py", source, TIMED_STEPS]).last_json()
    return seconds


if __name__ == "__main__":
    main()
