"""Pretraining speed and memory: this project beside `transformers.Trainer` and beside a bare PyTorch loop.

    python benchmarks/pretrain.py [--work FOLDER] [--rounds N] [--windows N]

All sides train the same new Llama (3.4 M parameters, fp32) on the same tokens of one token store, with the same
tokens per optimizer step, AdamW (fused), clipping and a constant learning rate. No row is padded on any side, and
speed counts input tokens.

Trainer: each side runs in a process of its own, ours through the real recipe command, so that peak memory (the
largest resident set, imports included) is that of one side. Each side first tries every microbatch size and then
runs at its fastest, the smallest of those that are equally fast; the sides take turns, so that a slow minute of the
machine meets all. A run is timed in windows of steps, of which the first is left out; its speed is that of the median
window, and a side's that of its median run at its fastest size. Two data sets are compared:

- short documents (150 tokens on average), several in a row of 1,024. Ours keeps attention and positions within each
  document, as it does unless told otherwise. `Trainer` gets the rows as its language-modelling example makes them,
  documents joined and cut, and attends over the whole row: it computes more, and something else. `Trainer, isolated`
  computes what ours does, by positions that restart. The last line compares ours with the faster of the two.
- whole modules (4,800 tokens on average), and `data.isolate_documents=false`: both attend over whole rows, so the
  arithmetic is equal, and what differs is the head, the batches and the loop.

Bare loop: on the short documents, see `bare_loop.py`. The two take turns every few steps within one process, since
the difference looked for is smaller than that between two processes.

The last line is JSON, ratios as ours over theirs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
from measure import REPOSITORY, run_python, tokens_per_second

MAX_SEQ_LEN = 1024
STEP_TOKENS = 8192
MICROBATCH_TOKENS = (1024, 2048, 8192)
VOCAB_SIZE = 4096
WINDOW_STEPS = 3
AS_FAST = 0.98  # of the fastest size's speed; runs differ by as much

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Run:
    """One timed run of one side."""

    tokens_per_second: float
    peak_bytes: int
    loss: float  # at the end: all sides must have learnt the same


Side = Callable[[Path, int, Path], Run]
"""(configuration, microbatch tokens, folder to work in) -> a timed run."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "benchmark_pretrain")
    options.add_argument(
        "--rounds", type=int, default=3, help="runs of each side at its fastest size, the try included"
    )
    options.add_argument("--windows", type=int, default=5, help=f"timed windows of {WINDOW_STEPS} steps in a run")
    arguments = options.parse_args()
    work: Path = arguments.work.resolve()
    configs = prepare(work, num_steps=WINDOW_STEPS * (1 + arguments.windows))
    print("Trainer's configuration:")
    print(run_python([HERE / "trainer_peer.py", "show", configs["short documents"], MICROBATCH_TOKENS[0]]).stdout)

    speed, memory, fastest = compare("short documents", configs, work, arguments.rounds)
    compare("whole modules", configs, work, arguments.rounds)
    bare = beside_bare_loop(configs["short documents"], fastest)
    line = {"tokens_per_s_vs_trainer": speed, "memory_vs_trainer": memory, "tokens_per_s_vs_bare_loop": bare}
    print(json.dumps({name: round(ratio, 3) for name, ratio in line.items()}))


def prepare(work: Path, num_steps: int) -> dict[str, Path]:
    """Write both data sets, train a tokenizer, write a configuration for each set, and build its token store."""
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
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "lr" in row]
    speed = tokens_per_second([row["elapsed_seconds"] for row in rows], WINDOW_STEPS * STEP_TOKENS)
    return Run(speed, peak_bytes, rows[-1]["loss"])


def recipe(config: Path, run_dir: Path, overrides: Mapping[str, Any]) -> int:
    """Run the pretrain recipe in a fresh folder; gives its peak resident bytes."""
    if run_dir.exists():
        shutil.rmtree(run_dir)
    lines = [f"{key}={value}" for key, value in overrides.items()]
    return run_python([REPOSITORY / "recipes" / "pretrain.py", config, *lines]).peak_bytes


def trainer(config: Path, microbatch_tokens: int, work: Path, attention: str = "rows") -> Run:
    """A run of `transformers.Trainer`, timed at the end of each optimizer step."""
    measured = run_python([HERE / "trainer_peer.py", attention, config, microbatch_tokens])
    result = measured.last_json()
    window_ends = result["seconds"][WINDOW_STEPS - 1 :: WINDOW_STEPS]
    return Run(tokens_per_second(window_ends, WINDOW_STEPS * STEP_TOKENS), measured.peak_bytes, result["loss"])


def trainer_isolated(config: Path, microbatch_tokens: int, work: Path) -> Run:
    """The same with attention and positions within documents."""
    return trainer(config, microbatch_tokens, work, attention="documents")


SIDES: dict[str, dict[str, Side]] = {
    "short documents": {"ours": ours, "Trainer": trainer, "Trainer, isolated": trainer_isolated},
    "whole modules": {"ours": ours, "Trainer": trainer},
}


def compare(name: str, configs: Mapping[str, Path], work: Path, rounds: int) -> tuple[float, float, int]:
    """Time all sides on a data set: ratios of speed and memory to the fastest peer, and our fastest size in tokens."""
    print(f"{name}: tokens/s, peak memory and last loss")
    sides = SIDES[name]
    runs: dict[str, dict[int, list[Run]]] = {side: {size: [] for size in MICROBATCH_TOKENS} for side in sides}
    fastest: dict[str, int] = {}
    for number in range(rounds):
        for size in MICROBATCH_TOKENS:
            for side, run in sides.items():
                if number == 0 or fastest[side] == size:
                    runs[side][size].append(run(configs[name], size, work))
                    print(f"  {side:18} microbatch {size:5}  {shown(runs[side][size][-1])}", flush=True)
        if number == 0:
            fastest = {side: best_size(tried) for side, tried in runs.items()}
    speeds = {side: statistics.median(run.tokens_per_second for run in runs[side][fastest[side]]) for side in sides}
    peaks = {side: statistics.median(run.peak_bytes for run in runs[side][fastest[side]]) for side in sides}
    ratios = {side: (speeds["ours"] / speeds[side], peaks["ours"] / peaks[side]) for side in sides if side != "ours"}
    for side, (speed, memory) in ratios.items():
        print(f"  ours over {side}: {speed:.3f} of its tokens/s, {memory:.3f} of its memory", flush=True)
    return *min(ratios.values()), fastest["ours"]


def best_size(tried: Mapping[int, list[Run]]) -> int:
    """The smallest microbatch that is as fast as any, to AS_FAST: nobody pays memory for less."""
    speeds = {size: runs[0].tokens_per_second for size, runs in tried.items()}
    return min(size for size, speed in speeds.items() if speed >= AS_FAST * max(speeds.values()))


def beside_bare_loop(config: Path, microbatch_tokens: int) -> float:
    """The ratio of the speed of our loop to that of the bare loop."""
    result = run_python([HERE / "bare_loop.py", config, microbatch_tokens]).last_json()
    print(f"bare loop, by turns, {microbatch_tokens} tokens per microbatch:")
    print(f"  ours {result['ours_tokens_per_second']:,.0f} tokens/s, bare {result['bare_tokens_per_second']:,.0f}")
    print(f"  weights after {result['steps']} steps differ by at most {result['weight_difference']:.1e}")
    print(f"  ours over bare, each pair of blocks: {', '.join(f'{ratio:.3f}' for ratio in result['ratios'])}")
    return float(statistics.median(result["ratios"]))


def shown(run: Run) -> str:
    return f"{run.tokens_per_second:8,.0f} tokens/s  {run.peak_bytes / 2**20:6,.0f} MB  loss {run.loss:.2f}"


if __name__ == "__main__":
    main()
