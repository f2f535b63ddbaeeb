"""One process of a recipe, as its script runs it, that also writes down which samples each step took.

`elastic_worker.py RECIPE RUN [KEY=VALUE ...]`, as after the recipe's script. A line for each step goes to
`RUN.DIR/../samples-RANK.jsonl`: {"step": 1, "samples": [0, 2]}.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import fsdp_on_cpu

from llmtrain.train.loop import Loop


class Recorded:
    """A batch source that writes down the samples of each step it gives out."""

    def __init__(self, source: Any, loop: Any, file: Path) -> None:
        self._source, self._loop, self._file = source, loop, file

    def next_step(self) -> Any:
        batches = self._source.next_step()
        if batches is not None:
            samples = sorted({number for batch in batches for number in batch.sample_ids})
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self._loop.progress.step + 1, "samples": samples}) + "\n")
        return batches

    def advance(self) -> None:
        self._source.advance()

    @property
    def epoch(self) -> float:
        return float(self._source.epoch)

    def metrics(self) -> Any:
        return self._source.metrics()

    def state_dict(self) -> Any:
        return self._source.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self._source.load_state_dict(state)


def main() -> None:
    recipe, run, *arguments = sys.argv[1:]
    fsdp_on_cpu.allow()
    train = Loop.run

    def recorded(loop: Any) -> Any:
        loop.source = Recorded(loop.source, loop, Path(run).parent / f"samples-{loop.runtime.rank}.jsonl")
        return train(loop)

    Loop.run = recorded  # type: ignore[method-assign]
    sys.argv = [recipe, *arguments, f"run.dir={run}"]
    runpy.run_path(recipe, run_name="__main__")


if __name__ == "__main__":
    main()
