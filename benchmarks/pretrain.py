"""Pretraining speed and memory: this project beside `transformers.Trainer` and beside a bare PyTorch loop.

    python benchmarks/pretrain.py [--work FOLDER] [--rounds N] [--windows N]

Both sides train the same new Llama (3.4 M parameters, fp32) on the same tokens of one token store, with the same
tokens per optimizer step, AdamW (fused), clipping and constant learning rate. No row is padded on either side, and
speed counts input tokens.

Trainer: each side runs in a process of its own, ours through the real recipe command, so that peak memory (the
largest resident set, imports included) is that of one side. First each side tries every microbatch size; then both
run at their fastest, taking turns, so that a slow minute of the machine meets both. A run is timed in windows of
steps, of which the first is left out; its speed is that of the median window, and a side's that of its median run.
Two data sets are compared:

- whole modules, longer than the context, and `data.isolate_documents=false`: both sides attend over whole rows, so
  the arithmetic is equal. The figures of the last line are these.
- short documents, with several in a row. Ours keeps attention and positions within each; Trainer gets the same rows
  as its language-modelling example makes them, concatenated and cut, and attends over the whole row.

Bare loop: see `bare_loop.py`. The two take turns every few steps within one process, since the difference looked
for is smaller than that between two processes.

The last line is JSON, ratios as ours over theirs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
from measure import REPOSITORY, run_python, tokens_per_second

MAX_SEQ_LEN = 256
STEP_TOKENS = 8192
MICROBATCH_TOKENS = (1024, 2048, 8192)
VOCAB_SIZE = 4096
WINDOW_STEPS = 4

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Run:
    """One timed run of one side."""

    tokens_per_second: float
    peak_bytes: int
    loss: float  # of the last window: both sides must have learnt the same


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "benchmark_pretrain")
    options.add_argument("--rounds", type=int, default=3, help="runs of each side at its fastest size")
    options.add_argument("--windows", type=int, default=5, help=f"timed windows of {WINDOW_STEPS} steps in a run")
    arguments = options.parse_args()
    work: Path = arguments.work
    configs = prepare(work, num_steps=WINDOW_STEPS * (1 + arguments.windows))

    print("Trainer's configuration:")
    print(run_python([HERE / "trainer_peer.py", "--show", configs["whole modules"], MICROBATCH_TOKENS[0]]).stdout)
    print("tokens/s and peak memory at each microbatch size, whole modules:")
    fastest: dict[str, int] = {}
    for side in SIDES:
        tries = {}
        for microbatch_tokens in MICROBATCH_TOKENS:
            tries[microbatch_tokens] = SIDES[side](configs["whole modules"], microbatch_tokens, work)
            print(f"  {side:8} {microbatch_tokens:6} tokens  {shown(tries[microbatch_tokens])}", flush=True)
        fastest[side] = max(tries, key=lambda size: tries[size].tokens_per_second)

    ratios = {name: compare(name, config, fastest, work, arguments.rounds) for name, config in configs.items()}
    bare = beside_bare_loop(configs["whole modules"], fastest["ours"])
    speed, memory = ratios["whole modules"]
    line = {"tokens_per_s_vs_trainer": speed, "memory_vs_trainer": memory, "tokens_per_s_vs_bare_loop": bare}
    print(json.dumps({name: round(ratio, 3) for name, ratio in line.items()}))


def prepare(work: Path, num_steps: int) -> dict[str, Path]:
    """Write both data sets, train a tokenizer, and write a configuration for each set; its token store is built too."""
    work.mkdir(parents=True, exist_ok=True)
    texts = corpus.documents()
    sets = {"whole modules": texts, "short documents": list(corpus.short_documents(texts))}
    tokenizer, rows = work / "tokenizer", {name: work / f"{name.replace(' ', '_')}.jsonl" for name in sets}
    configs = {}
    for name, documents in sets.items():
        if not rows[name].exists():
            corpus.write_rows(documents, rows[name])
    source = rows["whole modules"]
    tokenizer_config = REPOSITORY / "tokenizer" / "bpe_32k.yaml"
    overrides = [f"output={tokenizer}", f"sources={source}", f"vocab_size={VOCAB_SIZE}"]
    run_python([REPOSITORY / "tokenizer" / "train.py", tokenizer_config, *overrides])
    for name in sets:
        tree = {
            "run": {"dir": str(work / "run")},
            "model": {"preset": "3m"},
            "tokenizer": {"path": str(tokenizer)},
            "data": {
                "train": str(rows[name]),
                "eval_fraction": 0.0,
                "max_seq_len": MAX_SEQ_LEN,
                "isolate_documents": name == "short documents",
                "cache_dir": str(work / "stores"),
            },
            "train": {
                "steps": num_steps,
                "global_batch_tokens": STEP_TOKENS,
                "microbatch_tokens": MICROBATCH_TOKENS[-1],
            },
            "optim": {"schedule": "constant", "warmup_steps": 0},
            "eval": {"every": None},
            "checkpoint": {"every": None},
            "log": {"every": WINDOW_STEPS},
        }
        configs[name] = work / f"{name.replace(' ', '_')}.yaml"
        configs[name].write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
        recipe(configs[name], work / "run", {"train.steps": 1, "log.every": 1})  # builds the store
    return configs


def ours(config: Path, microbatch_tokens: int, work: Path) -> Run:
    """A run of the recipe, timed by its own `metrics.jsonl`: `elapsed_seconds`, logging included."""
    run_dir = work / "run"
    peak_bytes = recipe(config, run_dir, {"train.microbatch_tokens": microbatch_tokens})
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [row["elapsed_seconds"] for row in rows if "lr" in row]
    speed = tokens_per_second([0.0, *seconds], WINDOW_STEPS * STEP_TOKENS)
    return Run(speed, peak_bytes, [row["loss"] for row in rows if "lr" in row][-1])


def recipe(config: Path, run_dir: Path, overrides: Mapping[str, Any]) -> int:
    """Run the pretrain recipe in a fresh folder; gives its peak resident bytes."""
    remove_run(run_dir)
    lines = [f"{key}={value}" for key, value in overrides.items()]
    return run_python([REPOSITORY / "recipes" / "pretrain.py", config, *lines]).peak_bytes


def trainer(config: Path, microbatch_tokens: int, work: Path) -> Run:
    """A run of `transformers.Trainer`, timed at the end of each optimizer step."""
    measured = run_python([HERE / "trainer_peer.py", config, microbatch_tokens])
    result = measured.last_json()
    speed = tokens_per_second(result["seconds"][::WINDOW_STEPS], WINDOW_STEPS * STEP_TOKENS)
    return Run(speed, measured.peak_bytes, result["loss"])


SIDES = {"ours": ours, "Trainer": trainer}


def compare(name: str, config: Path, sizes: Mapping[str, int], work: Path, rounds: int) -> tuple[float, float]:
    """Run both sides by turns at the given microbatch sizes; gives the ratios of speed and of peak memory."""
    print(f"{name}, by turns:")
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            runs[side].append(SIDES[side](config, sizes[side], work))
            print(f"  {side:8} {sizes[side]:6} tokens  {shown(runs[side][-1])}", flush=True)
    speeds = [statistics.median(run.tokens_per_second for run in runs[side]) for side in SIDES]
    peaks = [statistics.median(run.peak_bytes for run in runs[side]) for side in SIDES]
    speed, memory = speeds[0] / speeds[1], peaks[0] / peaks[1]
    print(f"  ours over Trainer: {speed:.3f} of its tokens/s, {memory:.3f} of its memory", flush=True)
    return speed, memory


def beside_bare_loop(config: Path, microbatch_tokens: int) -> float:
    """The ratio of the speed of our loop to that of the bare loop."""
    result = run_python([HERE / "bare_loop.py", config, microbatch_tokens]).last_json()
    print(f"bare loop, by turns, {microbatch_tokens} tokens a microbatch:")
    print(f"  ours {result['ours_tokens_per_second']:,.0f} tokens/s, bare {result['bare_tokens_per_second']:,.0f}")
    print(f"  weights after {result['steps']} steps differ by at most {result['weight_difference']:.1e}")
    print(f"  ours over bare, each pair of blocks: {', '.join(f'{ratio:.3f}' for ratio in result['ratios'])}")
    return float(statistics.median(result["ratios"]))


def shown(run: Run) -> str:
    return f"{run.tokens_per_second:8,.0f} tokens/s  {run.peak_bytes / 2**20:6,.0f} MB  loss {run.loss:.2f}"


def remove_run(run_dir: Path) -> None:
    """Delete the run that the benchmark has left in its own folder."""
    if run_dir.exists():
        shutil.rmtree(run_dir)


if __name__ == "__main__":
    main()
