"""Runs the stages of a file in turn, as `config/stages.py` reads them; an interrupt ends them by its exception."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from llmtrain.config.recipes import RecipeConfig
from llmtrain.runs.folder import is_finished


class RunStage(Protocol):
    """Runs a stage to its end; `last`: no other follows in this process."""

    def __call__(self, config: Any, *, last: bool = True) -> None: ...


def run_stages(configs: Mapping[str, RecipeConfig], runs: Mapping[str, RunStage], say: Callable[[str], None]) -> None:
    """Run the stages that are not finished, in order; `runs`: by a stage's name."""
    pending = [name for name, config in configs.items() if not is_finished(Path(config.run.dir), config)]
    for name, config in configs.items():
        folder = config.run.dir
        if name not in pending:
            follows_pending = pending and list(configs).index(pending[0]) < list(configs).index(name)
            hint = (
                f"; trained on the earlier result of a stage that is run again: remove {folder} to run this one too"
                if follows_pending
                else ""
            )
            say(f"{name} stage: finished in {folder}, skipped{hint}")
            continue
        say(f"{name} stage: runs in {folder}")
        runs[name](config, last=name == pending[-1])
        gc.collect()  # cycles hold the models of a stage
