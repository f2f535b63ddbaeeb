"""Both stages of reinforcement learning from one file, small enough to be run many times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_chat
import tiny_pairs
import yaml


def write_inputs(folder: Path) -> Path:
    """A chat model and pairs; the folder."""
    tiny_chat.write_model(folder / "base")
    tiny_pairs.write_pairs(folder / "pairs.jsonl", seed=1)
    return folder


def write_config(folder: Path, inputs: Path, **policy_sections: Any) -> Path:
    """A configuration in `folder` whose runs go to `folder/run/reward` and `folder/run/policy`."""
    tree = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": str(inputs / "base")},
        "adapter": {"kind": "lora", "rank": 8, "alpha": 32},
        "data": {"train": str(inputs / "pairs.jsonl"), "eval_fraction": 0.2, "max_seq_len": 256},
        "train": {"microbatch_tokens": 1024},
        "optim": {"lr": 0.01},
        "reward_stage": {
            "reward": {},
            "data": {"cache_dir": str(folder / "cache")},
            "train": {"steps": 20, "global_batch_tokens": 1024},
        },
        "policy_stage": {
            "policy": {"kl_coef": 0.001, "critic": "separate", "critic_init": "reward"},
            "rollout": {
                "rewards": [{"name": "model"}],
                "num_prompts": 16,
                "max_new_tokens": 8,
                "on_weak_reward": "refuse",
                "top_p": 0.9,
                "score_normalise": True,
            },
            "data": {"max_seq_len": 128},
            "train": {"steps": 4},
            "log": {"every": 1, "report": False},
            **policy_sections,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path
