"""The log of a run: the progress line, `train.log`, `metrics.jsonl`, `events.jsonl`, the trackers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as ProgressBar

from llmtrain.protocols import Counts
from llmtrain.system.console import open_console, print_line
from llmtrain.system.counted import clock, counted
from llmtrain.system.files import FREE_RUN, append_text, cut_torn_line, write_bytes, write_errors_named, write_json
from llmtrain.system.finite import is_number
from llmtrain.system.json_lines import json_line, parsed, whole_lines
from llmtrain.system.run_files import (
    EVALUATIONS,
    EVENTS_FILE,
    LOG_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    evaluation_path,
)
from llmtrain.system.terminal import shown_output
from llmtrain.system.visible import visible_message
from llmtrain.train.sample_file import append_samples, keep_samples

Row = Mapping[str, float | int]

EventName = Literal["started", "resumed", "skipped", "rolled_back", "slow", "interrupted", "finished", "failed"]


class RunLog:
    """Writes the rows of a run, on the main rank only; on the others every method does nothing.

    A resumed run first drops the rows after the step it resumes from, so each step is there once.
    """

    def __init__(
        self,
        folder: Path,
        *,
        may_write: Callable[[], bool],
        num_steps: int,
        flops: Callable[[Counts], float],
        peak_flops: float,
        track: Callable[[Row, int], None],
        memory_bytes: Callable[[], int],
    ) -> None:
        """`flops` of a step follow from its totals; `peak_flops` is that of all devices together, in FLOP/s.

        `may_write`: whether this is the main rank; raises ValueError if another launch has taken the run over.
        """
        self._may_write, self._num_steps = may_write, num_steps
        self._flops, self._peak_flops = flops, peak_flops
        self._track, self._memory_bytes = track, memory_bytes
        self._folder = folder
        self._metrics_path, self._log_path = folder / METRICS_FILE, folder / LOG_FILE
        self._has_events = False  # of this process, so that the file ends with a whole line
        self._console = open_console()
        self._bar: ProgressBar | None = None
        self._open = ExitStack()
        self._window_tokens = self._window_flops = self._window_seconds = 0.0  # since the last training row
        self._seconds_before_steps = 0.0  # of the evaluation before the first step, which happens once

    def __enter__(self) -> RunLog:
        if self._may_write() and self._console.is_terminal:
            columns = (BarColumn(bar_width=10), TextColumn("{task.fields[status]}"))
            self._bar = ProgressBar(*columns, console=self._console, transient=True)
            self._open.callback(self._bar.stop)
            self._bar.start()
            self._open.enter_context(shown_output())  # what libraries print goes through the bar, which obeys colours
            self._task = self._bar.add_task("", total=self._num_steps, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def resume_at(self, step: int, evaluated_step: int) -> None:
        """Drop training rows after `step` and evaluation rows after `evaluated_step`: they will be written again."""
        if self._may_write() and self._metrics_path.exists():
            rows, num_bad = read_rows(self._metrics_path)
            kept = [row for row in rows if row["step"] <= (evaluated_step if "eval_loss" in row else step)]
            write_bytes(self._metrics_path, "".join(f"{json.dumps(row)}\n" for row in kept).encode(), FREE_RUN)
            for row in kept:
                self._note_first_evaluation(row)
            if num_bad:
                self.say(f"warning: {self._metrics_path}: dropped {counted(num_bad, 'line')} that cannot be read")
            for path in (self._folder / EVALUATIONS).glob("step-*.json"):
                if int(path.stem.removeprefix("step-")) > evaluated_step:
                    path.unlink()
            keep_samples(self._folder / SAMPLES_FILE, lambda sample: sample.get("step", -1) <= evaluated_step)

    def say(self, text: str) -> None:
        """A line for the terminal and the log file."""
        if not self._may_write():
            return
        print_line(self._console, text)
        self._log(text)

    def event(self, name: EventName, step: int, details: Mapping[str, Any] = {}) -> None:
        """Append what happened to the run, and when, to `events.jsonl`, where it stays if the run goes back."""
        if not self._may_write():
            return
        path = self._folder / EVENTS_FILE
        if not self._has_events:
            with write_errors_named(path, FREE_RUN):
                cut_torn_line(path)
            self._has_events = True
        event = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "event": name, "step": step}
        append_text(path, json_line(event | _plain(details)), FREE_RUN)

    def count_step(self, totals: Counts, seconds: float) -> None:
        """Add a step's totals and time to what the next training row takes its speed from."""
        self._window_tokens += totals["input_tokens"]
        self._window_flops += self._flops(totals)
        self._window_seconds += seconds

    def train_row(self, row: dict[str, float | int]) -> None:
        """A training row: `row` with speed and MFU over the steps since the last one."""
        if not self._may_write():
            return
        seconds = max(self._window_seconds, 1e-9)
        speed = self._window_tokens / seconds
        row = {**row, "tokens_per_second": speed, "mfu": self._window_flops / seconds / self._peak_flops}
        self._window_tokens = self._window_flops = self._window_seconds = 0.0
        row["memory_bytes"] = self._memory_bytes()
        self._write(row)
        step = int(row["step"])
        seconds_left = (row["elapsed_seconds"] - self._seconds_before_steps) / max(step, 1) * (self._num_steps - step)
        left = clock(int(seconds_left))
        line = (
            f"step {step}/{self._num_steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
            f"grad norm {row['grad_norm']:.2f}  {speed:,.0f} tokens/s  MFU {row['mfu']:.0%}  "
            f"{row['memory_bytes'] / 1e9:.1f} GB  {left} left"
        )
        if self._bar is not None:  # what fits into 80 columns
            few = f"step {step}/{self._num_steps}  {left} left  loss {row['loss']:.4f}  {speed:,.0f} tokens/s"
            self._bar.update(self._task, completed=step, status=few)
            self._log(line)
        else:
            self.say(line)

    def eval_row(self, row: Mapping[str, Any]) -> None:
        """An evaluation row, also logged as a line; `report`, `samples` and `summary` are as `Evaluate` has them."""
        if not self._may_write():
            return
        numbers = {name: value for name, value in row.items() if name not in ("report", "samples", "summary")}
        if "report" in row:  # before the row, which then never is without it
            path = evaluation_path(self._folder, int(row["step"]))
            with write_errors_named(path.parent, FREE_RUN):
                path.parent.mkdir(exist_ok=True)
            write_json(path, _plain(row["report"]), FREE_RUN)
        append_samples(self._folder / SAMPLES_FILE, [{"step": row["step"]} | each for each in row.get("samples", ())])
        self._write(numbers)
        self._note_first_evaluation(numbers)
        summary = row.get("summary", f"held-out loss {numbers['eval_loss']:.4f}")
        self.say(f"step {row['step']}/{self._num_steps}  evaluation: {summary}")

    def _note_first_evaluation(self, row: Row) -> None:
        """Keep the time until step 1 out of the time per step that `left` is taken from."""
        if row["step"] == 0:
            self._seconds_before_steps = row.get("elapsed_seconds", 0.0)

    def _log(self, text: str) -> None:
        """A line for the log file only."""
        append_text(self._log_path, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible_message(text)}\n", FREE_RUN)

    def _write(self, row: Row) -> None:
        line = json.dumps({name: _plain(value) for name, value in row.items()}, allow_nan=False)
        append_text(self._metrics_path, line + "\n", FREE_RUN)
        self._track(row, int(row["step"]))


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a `metrics.jsonl`, and how many lines cannot be read, besides a last one that a kill cut short."""
    lines = [parsed(line) for line in whole_lines(path)]
    rows = [row for row in lines if row is not None and is_number(row.get("step"))]
    return rows, len(lines) - len(rows)


def _plain(value: Any) -> Any:
    """A value, or a tree of values, as JSON has it, which knows neither NaN nor infinity: None in their place."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
