"""Tiny runs of every recipe on two trees, on this machine: are losses, gradient norms, samples and weights equal?

    python tests/golden.py --before REVISION         # the tree at REVISION against this one
    python tests/golden.py --before REVISION --only ppo dpo

A refactoring must change nothing. Each case runs its recipe through the command line, in one process and in two under
DeepSpeed ZeRO-2. What the tree at REVISION gives is kept in `runs/golden/` and is computed once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny_chat
import tiny_pairs
import tiny_run
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "runs" / "golden"
COMPARED = ("step", "loss", "lr", "grad_norm", "tokens", "eval_loss")

LORA = {"kind": "lora", "rank": 4, "alpha": 16, "dropout": 0.1}
REWARD = """
def share_good(prompts, responses, rows):
    return [sum(letter in "abcd" for letter in response) / (len(response) + 1) for response in responses]
"""
OLD_KEYS: dict[str, str] = {}
"""Keys of configurations -> what they were called at the revision that is compared with."""


def tree_of(case: str, inputs: Path, run: Path) -> dict[str, Any]:
    """The configuration of a case, whose run goes to `run`."""
    common: dict[str, Any] = {
        "run": {"dir": str(run), "seed": 3},
        "train": {"steps": 6, "global_batch_tokens": 1024, "microbatch_tokens": 256},
        "optim": {"lr": 0.01, "name": "adamw"},
        "eval": {"every": 3},
        "checkpoint": {"every": 4},
        "log": {"every": 1},
    }
    data = {"max_seq_len": 128, "eval_fraction": 0.1, "cache_dir": str(run / "cache")}
    tuned = common | {"model": {"path": str(inputs / "chat")}}
    pairs = data | {"train": str(inputs / "pairs.jsonl"), "max_seq_len": 256}
    on_pairs = tuned | {"data": pairs, "train": common["train"] | {"microbatch_tokens": 512}}
    rewards = [f"{inputs / 'reward.py'}:share_good"]
    match case:
        case "pretrain":
            model = {"preset": "1m", "config": {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}}
            own = {
                "model": model,
                "tokenizer": {"path": str(inputs / "tokenizer")},
                "data": data | {"train": str(inputs / "corpus.jsonl")},
            }
            return common | own
        case "sft":
            return tuned | {"adapter": LORA, "data": data | {"train": str(inputs / "rows.jsonl")}}
        case "reward":
            return on_pairs | {"adapter": LORA, "reward": {}}
        case "dpo" | "kto":
            return on_pairs | {"preference": {"loss": case}}
        case "ppo":
            rollout = {
                "rewards": rewards,
                "num_prompts": 8,
                "samples_per_prompt": 2,
                "max_new_tokens": 12,
                "ppo_epochs": 2,
            }
            train = {"steps": 6, "microbatch_tokens": 512}
            return on_pairs | {"policy": {"kl_coef": 0.01}, "rollout": rollout, "train": train}
    raise AssertionError(case)


RECIPES = {
    "pretrain": "pretrain.py",
    "sft": "sft.py",
    "reward": "rlhf.py",
    "dpo": "rlhf.py",
    "kto": "rlhf.py",
    "ppo": "rlhf.py",
}
LAUNCHES = {"one": 1, "zero2": 2}


def write_inputs(folder: Path) -> Path:
    """Models, text, chats and pairs that all cases start from; the folder."""
    if not (folder / "pairs.jsonl").exists():
        tiny_run.write_tokenizer(folder / "tokenizer")
        tiny_run.write_corpus(folder / "corpus.jsonl", seed=1)
        tiny_chat.write_model(folder / "chat", spread=0.2)
        tiny_chat.write_rows(folder / "rows.jsonl", seed=1)
        (folder / "reward.py").write_text(REWARD)
        tiny_pairs.write_pairs(folder / "pairs.jsonl", seed=1)
    return folder


def run_case(tree: Path, case: str, launch: str, folder: Path, old_keys: bool) -> dict[str, Any]:
    """What a case gives on a tree: rows of metrics, samples, the hash of the weights."""
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    folder.mkdir(parents=True)
    config = tree_of(case, write_inputs(FOLDER / "inputs"), folder / "run")
    (folder / "config.yaml").write_text(yaml.safe_dump(renamed(config) if old_keys else config))
    recipe = [str(tree / "recipes" / RECIPES[case]), str(folder / "config.yaml")]
    command = [sys.executable, *recipe]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if LAUNCHES[launch] > 1:
        environment |= {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tiny_run.built_extensions())}
        engine = ["--config_file", str(tree / "recipes" / "accelerate" / "cpu_zero2.yaml"), "--main_process_port", "0"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *engine, *recipe]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case}, {launch}, in {tree}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return result_of(folder / "run")


def result_of(run: Path) -> dict[str, Any]:
    """The numbers that a run has left."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [{key: row[key] for key in COMPARED if key in row} for row in map(json.loads, lines)]
    samples = run / "samples.jsonl"
    texts = [json.loads(line)["response"] for line in samples.read_text().splitlines()] if samples.exists() else []
    weights = sorted((run / "model").glob("*.safetensors"))
    assert weights, run
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    return {"rows": rows, "samples": texts, "weights": digest}


def renamed(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration in the keys of the revision before."""
    tree: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        old = OLD_KEYS.get(key, key).rsplit(".", 1)[-1]
        tree[old] = renamed(value, f"{key}.") if isinstance(value, dict) else value
    return tree


def checkout(revision: str) -> Path:
    """A work tree of a revision."""
    commit = subprocess.check_output(["git", "rev-parse", revision], cwd=ROOT, text=True).strip()
    tree = FOLDER / commit[:12]
    if not tree.exists():
        subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=True)
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), commit], cwd=ROOT, check=True)
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="REVISION")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--launches", nargs="+", choices=LAUNCHES, default=list(LAUNCHES))
    arguments = parser.parse_args()
    before = checkout(arguments.before)
    kept = before.with_suffix(".json")
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    differ = 0
    for case in arguments.only:
        for launch in arguments.launches:
            name = f"{case}-{launch}"
            if name not in known:
                known[name] = run_case(before, case, launch, FOLDER / "before" / name, old_keys=True)
                kept.write_text(json.dumps(known))
            now = run_case(ROOT, case, launch, FOLDER / "now" / name, old_keys=False)
            parts = [part for part in now if now[part] != known[name][part]]
            differ += bool(parts)
            losses = [row["loss"] for row in now["rows"] if "loss" in row]
            print(f"{name:15}", f"DIFFERS in {', '.join(parts)}" if parts else f"equal; losses {losses}", flush=True)
            for part in parts:
                print(f"    before {str(known[name][part])[:600]}\n    now    {str(now[part])[:600]}")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
