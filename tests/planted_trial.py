"""A run whose held-out loss is a formula, for tests of searches: it starts in a tenth of a second.

`python tests/planted_trial.py -m llmtrain sft CONFIG` does to its folder what a recipe does: rows, resuming, saving on
SIGTERM, the mark of a finished run. The loss is lowest at a learning rate of 1e-3; weight decay does nothing; from a
rate of 0.5 on it is refused, and from 0.2 on it crashes. It notes each start, and two at a time.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import yaml

SECONDS = "PLANTED_SECONDS"
"""Environment variable: how long a step takes."""


def main() -> None:
    """Train, as far as the folder shows."""
    tree = yaml.safe_load(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    folder = Path(tree["run"]["dir"])
    folder.mkdir(parents=True, exist_ok=True)
    lr = float(tree["optim"]["lr"])
    if lr >= 0.5:
        sys.exit("error: optim.lr is too large for planted data")
    if lr >= 0.2:
        raise RuntimeError("planted crash")
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    try:
        os.close(os.open(folder / "running", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        (folder / "doubled").touch()
    try:
        with (folder / "starts").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if train(tree, folder, lr, stop):
            (folder / "finished.yaml").write_text("{}\n")
    finally:
        (folder / "running").unlink(missing_ok=True)


def train(tree: dict, folder: Path, lr: float, stop: list[int]) -> bool:
    """Write the rows that are missing; whether all are there."""
    metrics = folder / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    for step in range(done + 1, tree["train"]["steps"] + 1):
        if stop:
            return False
        time.sleep(float(os.environ.get(SECONDS, "0")))
        loss = 2 + (math.log10(lr) + 3) ** 2 + 1 / step + 0.01 * tree["run"].get("seed", 0)
        row = {"step": step, "elapsed_seconds": 0.1 * step, "tokens": 100 * step, "eval_loss": loss}
        with metrics.open("a") as file:
            file.write(json.dumps({**row, "eval_accuracy": -loss}) + "\n")
    return True


if __name__ == "__main__":
    main()
