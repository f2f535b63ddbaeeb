"""Faults that a test plants in the processes of a job: Python imports this file where PYTHONPATH has its folder.

LLMTRAIN_TEST_PLANTS, in JSON: `step`, before which the ranks of `waiting_ranks` wait until the file `until` exists or
the run is asked to stop; `slow_save_seconds`, by which the save of that step is slower as long as the file does not
exist. A waiting rank leaves the file `until`.waiting-RANK.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

PLANTS = json.loads(os.environ.get("LLMTRAIN_TEST_PLANTS", "{}"))
POLL_SECONDS = 0.05


def wait_before_the_step(loop: ModuleType) -> None:
    """Make ranks wait before a step."""
    step_of = loop.Loop._step

    def step(self: Any) -> Any:
        until, rank = Path(PLANTS["until"]), int(os.environ["RANK"])
        if self.progress.step == PLANTS["step"] and rank in PLANTS["waiting_ranks"]:
            until.with_name(f"{until.name}.waiting-{rank}").touch()
            while not until.exists() and self.stop.requested is None:
                time.sleep(POLL_SECONDS)
        return step_of(self)

    loop.Loop._step = step


def slow_down_the_save(checkpoint: ModuleType) -> None:
    """Make the main rank slow to save that step."""
    save_of = checkpoint.Checkpoints.save

    def save(self: Any, runtime: Any, step: int, *rest: Any, **options: Any) -> Any:
        if runtime.is_main and step == PLANTS["step"] and not Path(PLANTS["until"]).exists():
            time.sleep(PLANTS["slow_save_seconds"])
        return save_of(self, runtime, step, *rest, **options)

    checkpoint.Checkpoints.save = save


PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "llmtrain.train.loop": wait_before_the_step,
    "llmtrain.train.checkpoint": slow_down_the_save,
}


class Planter(importlib.abc.MetaPathFinder):
    """Patches a module after its import."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            PATCHES[name](module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


if PLANTS:
    sys.meta_path.insert(0, Planter())
