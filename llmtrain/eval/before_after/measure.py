"""A run's model before and after training, measured on the same things, each kept once as a file of results.

    before_after.measure(before_path(folder), module, ..., step=0)       the weights that the run starts from
    before_after.measure(after_path(folder), module, ..., step=200)      those that it exports

The files are those of `llmtrain eval`. What cannot be measured is a line of the log and fails no run, unless it fails
within a forward that several ranks compute together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import nn

from llmtrain.eval.before_after.together import Unmeasured
from llmtrain.eval.tasks.results import Evaluation, TaskResult, read_evaluation, save_evaluation
from llmtrain.protocols import Ranks, Report
from llmtrain.system.files import one_line

NOT_MEASURED = "not_measured"  # field of an evaluation's model: what -> why

Measurement = Callable[[nn.Module, Callable[[], bool]], Sequence[TaskResult] | None]
"""(module in eval mode, whether any rank was asked to stop) -> results, whole on the main process; None if stopped.

Collective; raises Unmeasured on every rank.
"""


@dataclass(frozen=True)
class BeforeAfter:
    """What is measured before and after, in order, and what is known of the model."""

    measurements: Mapping[str, Measurement]
    asked: str  # all that decides the numbers besides the weights; in words that the log shows
    record: Mapping[str, Any]  # for the files: path, tokenizer
    ranks: Ranks
    report: Report

    def measure(
        self,
        path: Path,
        module: nn.Module,
        should_stop: Callable[[], bool],
        *,
        may_write: Callable[[], bool],
        step: int,
    ) -> None:
        """Measure and write the file, unless it has just this already. Collective; raises as `together`."""
        digest = blake2b(self.asked.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        key = {**self.record, "step": step, "asked": digest}
        if not self.measurements or self.ranks.any(may_write() and _has(path, key)):
            return
        when = "before training" if not step else f"after step {step}"
        self.report(f"measuring {self.asked} {when} (eval.before_after=0 turns it off)")
        started, was_training = time.perf_counter(), module.training
        module.eval()
        try:
            found = self._found(module, should_stop)
        finally:
            module.train(was_training)
        if found is None:
            self.report("asked to stop: nothing of it is kept")
            return
        results, failed = found
        if may_write():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_evaluation(path, Evaluation({**key, NOT_MEASURED: failed}, results))
            except (OSError, ValueError) as error:
                self.report(f"warning: {path}: not written: {one_line(error)}")
        self.report(f"measured in {time.perf_counter() - started:.1f} s")

    def _found(
        self, module: nn.Module, should_stop: Callable[[], bool]
    ) -> tuple[dict[str, TaskResult], dict[str, str]] | None:
        """The results, and why others are missing; None if asked to stop."""
        results: dict[str, TaskResult] = {}
        failed: dict[str, str] = {}
        for name, measurement in self.measurements.items():
            try:
                measured = measurement(module, should_stop)
            except Unmeasured as error:
                failed[name] = one_line(error)
                self.report(f"warning: {name.replace('_', ' ')}: not measured: {failed[name]}")
                continue
            if measured is None or should_stop():  # the same on every rank
                return None
            kept = [_finite(result) for result in measured]
            results |= {each.task: each for each in kept if each.measures and each.items}
        return results, failed


def _has(path: Path, key: Mapping[str, Any]) -> bool:
    """Whether a file has the results of these weights on these things."""
    try:
        model = read_evaluation(path).model
    except (OSError, ValueError):  # nothing is there, or something else
        return False
    return all(model.get(name) == value for name, value in key.items())


def _finite(result: TaskResult) -> TaskResult:
    """Without the measures that are not finite for some item, which a note names."""
    names = {name for item in result.items for name, value in item.values.items() if not math.isfinite(value)}
    if not names:
        return result
    measures = [each for each in result.measures if each.name not in names and each.weight not in names]
    items = [replace(item, values={k: v for k, v in item.values.items() if k not in names}) for item in result.items]
    notes: Sequence[str] = [*result.notes, f"{', '.join(sorted(names))}: not finite, so left out"]
    return replace(result, measures=measures, items=items, notes=notes)
