"""One of several processes that save a checkpoint together, of which one is killed inside the save.

`killed_save_worker.py FOLDER RANK NUMBER`: the main process is killed before its operation NUMBER on files, another
rank before it has given out parameter NUMBER. Without a rank to kill, says what there is to continue from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from kill_points import KILLED, kill_before
from torch import nn

from llmtrain.train.checkpoint import Checkpoints
from llmtrain.train.runtime import Runtime


def main() -> None:
    folder, rank, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    runtime = Runtime(precision="fp32", max_grad_norm=None, seed=0, timeout_minutes=1)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    runtime.prepare(model, torch.optim.AdamW(model.parameters()))
    runtime.make_state()
    checkpoints = Checkpoints(folder, keep=1, keep_best=False)
    if rank < 0:
        latest = checkpoints.latest(runtime)
        assert latest is not None
        runtime.load_named_state(latest.read_parameter)
        checkpoints.save(runtime, latest.step + 1, {}, extra={})
        runtime.say(f"continued from {latest.step}")
    else:
        checkpoints.save(runtime, 10, {}, extra={})
        if runtime.rank == rank == 0:
            kill_before(number)
        elif runtime.rank == rank:
            named_state = runtime.named_state
            runtime.named_state = lambda: killed_after(named_state(), number)  # type: ignore[method-assign]
        checkpoints.save(runtime, 20, {}, extra={})
        runtime.barrier()
    runtime.finish()


def killed_after(named: Iterator[Any], number: int) -> Iterator[Any]:
    for count, item in enumerate(named):
        if count == number:
            os._exit(KILLED)
        yield item


if __name__ == "__main__":
    main()
