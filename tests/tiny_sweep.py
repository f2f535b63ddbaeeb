"""Searches over planted runs (`planted_trial.py`): a configuration, a space, a sweep here or in a forked process."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from planted_trial import SECONDS
from rich.console import Console

from llmtrain.tune.sweep.command import sweep
from llmtrain.tune.sweep.request import Budget, Request
from llmtrain.tune.sweep.study import Search, Study, TrialRecord

PLANTED = f"{sys.executable} {Path(__file__).with_name('planted_trial.py')}"
RATES = {"optim.lr": {"log": [1e-5, 1e-1]}, "optim.weight_decay": {"range": [0, 1]}}


def write_inputs(folder: Path, space: Mapping[str, Any] = RATES, steps: int = 3, **sections: Any) -> Path:
    """A configuration and a space; the configuration."""
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": "nowhere"},
        "adapter": {"kind": "lora"},
        "data": {"train": "nowhere.jsonl", "max_seq_len": 128, "eval_fraction": 0.1},
        "train": {"steps": steps, "global_batch_tokens": 512, "microbatch_tokens": 256},
        "optim": {"lr": 0.01, "warmup_steps": 0},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "space.yaml").write_text(yaml.safe_dump(dict(space)), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "config.yaml"


def request(config: Path, folder: Path, **options: Any) -> Request:
    """A search of planted runs: four trials at random, none stopped early."""
    asked: dict[str, Any] = {
        "argv": [str(config)],
        "recipe": None,
        "space": config.with_name("space.yaml"),
        "budget": Budget(4, None, None),
        "sampler": "random",
        "seeds": 1,
        "folder": folder,
        "metric": "eval_loss",
        "maximize": False,
        "prunes": False,
        "keep_best": False,
        "launcher": PLANTED,
    }
    return Request(**{**asked, **options})


def run(asked: Request) -> str:
    """What a sweep in this process prints."""
    file = io.StringIO()
    assert sweep(asked, Console(file=file, width=200)) == 0
    return file.getvalue()


def run_forked(asked: Request, step_seconds: float = 0.0) -> None:
    """A sweep of a forked process, without its page, which takes longer than its runs; a step takes so long."""
    os.environ[SECONDS] = str(step_seconds)
    with patch("llmtrain.tune.sweep.command._page", return_value=""):
        sys.exit(sweep(asked, Console(width=200)))


def records(folder: Path) -> list[TrialRecord]:
    """The trials of a sweep's folder."""
    return Study(folder, Search(**yaml.safe_load((folder / "sweep.yaml").read_text()))).records()
