"""What the tests of killed saves run in a process of its own: saves that are killed before each of their operations."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from kill_points import KILLED, kill_before
from torch import nn

from llmtrain.train.checkpoint import Checkpoints
from llmtrain.train.runtime import Runtime

SAVED = (10, 20)  # the first is the best


def killed_at_each(action: Callable[[], object], before: Callable[[], object]) -> Iterator[int]:
    """Run an action in forked processes, each killed one operation later, until one comes to its end.

    `before` runs here before each; gives the number of the operation after each kill.
    """
    number = 0
    while True:
        number += 1
        before()
        child = os.fork()
        if child == 0:
            kill_before(number)
            action()
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        assert status == KILLED, status
        yield number


class Saves:
    """Checkpoints of a small model in a folder that can be brought back to what it was at the start."""

    def __init__(self, folder: Path) -> None:
        self.runtime = Runtime(precision="fp32", max_grad_norm=None, seed=0, timeout_minutes=1)
        self.model = nn.Linear(4, 4)
        self.runtime.prepare(self.model, torch.optim.AdamW(self.model.parameters()))
        self.runtime.make_state()
        self.folder, self.start = folder / "checkpoints", folder / "start"
        for step in SAVED:
            self.save(step)
        self.folder.rename(self.start)

    def restart(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.start, self.folder)

    def save(self, step: int, turn: int = 0) -> None:
        nn.init.constant_(self.model.weight, step + turn)
        checkpoints = Checkpoints(self.folder, keep=1, keep_best=True)
        checkpoints.save(self.runtime, step, {"step": step, "turn": turn}, extra={}, best=step == SAVED[0])

    def found(self) -> tuple[int, int]:
        """(step, turn) of the newest checkpoint, all of whose parts are of it."""
        latest = Checkpoints(self.folder, keep=1, keep_best=True).latest(self.runtime)
        assert latest is not None
        step, turn = latest.state["step"], latest.state["turn"]
        assert latest.step == step and torch.equal(
            latest.read("model", "weight"), torch.full((4, 4), 1.0 * step + turn)
        )
        return step, turn


def main() -> None:
    saves, left = Saves(Path(sys.argv[1])), Path(sys.argv[1]) / "left"

    def as_left() -> None:
        shutil.rmtree(saves.folder)
        shutil.copytree(left, saves.folder)

    # A new one, which removes the one before; one that replaces another; one after the run went back.
    for step, turn in ((30, 0), (20, 1), (15, 0)):
        kills = 0
        for number in killed_at_each(lambda step=step, turn=turn: saves.save(step, turn), saves.restart):
            kills += 1
            shutil.rmtree(left, ignore_errors=True)
            shutil.copytree(saves.folder, left)
            expected = saves.found()
            assert expected in {(20, 0), (step, turn)}, (number, expected)
            for _ in killed_at_each(saves.found, as_left) if turn else ():  # the one that cleans up is killed too
                assert saves.found() == expected, number
            assert not [*saves.folder.glob("*.partial"), *saves.folder.glob("*.removed*")], number
        print(f"step {step}, turn {turn}: killed {kills} times", flush=True)


if __name__ == "__main__":
    main()
