"""A torch.profiler trace of a stretch of steps, on request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, supported_activities


class StepProfiler:
    """Records the steps from `first` to `last`, both included and counted from 1, into `folder`.

    The trace opens in Perfetto or chrome://tracing; `rankN.summary.txt` lists the operators by their own time.
    If the run starts or ends inside the stretch, the trace holds the steps that were run.
    """

    def __init__(self, steps: Sequence[int] | None, folder: Path, rank: int, num_steps: int) -> None:
        """Raises ValueError if the stretch begins after the run's last step."""
        if steps is not None and steps[0] > num_steps:
            raise ValueError(f"log.profile={list(steps)} begins after the run's {num_steps} steps")
        self._steps, self._folder, self._rank = steps, folder, rank
        self._profiler: profile | None = None

    def before_step(self, step: int) -> None:
        """Start recording if `step`, the next one, is in the stretch."""
        if self._steps is not None and self._profiler is None and self._steps[0] <= step <= self._steps[1]:
            activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
            self._profiler = profile(activities=[one for one in activities if one in supported_activities()])
            self._profiler.start()

    def after_step(self, step: int) -> None:
        """Write the trace if `step`, which is done, was the last of the stretch."""
        if self._steps is not None and step >= self._steps[1]:
            self.close()

    def close(self) -> None:
        """Write the trace, if one is being recorded."""
        if self._profiler is None:
            return
        self._profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self._folder / f"rank{self._rank}.json.gz"))
        table = self._profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        (self._folder / f"rank{self._rank}.summary.txt").write_text(table, encoding="utf-8")
        self._profiler = None
