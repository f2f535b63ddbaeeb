"""The log of a run, for people and programs: the progress line, `train.log`, `metrics.jsonl`, the trackers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as ProgressBar

from llmtrain.protocols import Counts
from llmtrain.system.files import FREE_RUN, write_bytes, write_json

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "train.log"
EVALUATIONS = "evaluations"  # a file for each evaluation that reports more than numbers

Row = Mapping[str, float | int]


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
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: ProgressBar | None = None
        self._window_tokens = self._window_flops = self._window_seconds = 0.0  # since the last training row

    def __enter__(self) -> RunLog:
        if self._may_write() and self._console.is_terminal:
            columns = (BarColumn(bar_width=20), TextColumn("{task.fields[status]}"))
            self._bar = ProgressBar(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._num_steps, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def resume_at(self, step: int, evaluated_step: int) -> None:
        """Drop training rows after `step` and evaluation rows after `evaluated_step`: they will be written again."""
        if self._may_write() and self._metrics_path.exists():
            rows, num_bad = read_rows(self._metrics_path)
            kept = [row for row in rows if row["step"] <= (evaluated_step if "eval_loss" in row else step)]
            write_bytes(self._metrics_path, "".join(f"{json.dumps(row)}\n" for row in kept).encode(), FREE_RUN)
            if num_bad:
                self.say(f"warning: {self._metrics_path}: {num_bad} lines cannot be read and were dropped")
            for path in (self._folder / EVALUATIONS).glob("step-*.json"):
                if int(path.stem.removeprefix("step-")) > evaluated_step:
                    path.unlink()

    def say(self, text: str) -> None:
        """A line for the terminal and the log file."""
        if not self._may_write():
            return
        self._console.print(text, markup=False)
        with self._log_path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

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
        left = row["elapsed_seconds"] / max(step, 1) * (self._num_steps - step)
        line = (
            f"step {step}/{self._num_steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
            f"grad norm {row['grad_norm']:.2f}  {speed:,.0f} tokens/s  MFU {row['mfu']:.0%}  "
            f"{row['memory_bytes'] / 1e9:.1f} GB  {_clock(left)} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=line)
            with self._log_path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        else:
            self.say(line)

    def eval_row(self, row: Mapping[str, Any]) -> None:
        """An evaluation row, also logged as a line; its `report`, if it has one, goes to `evaluation_path`."""
        if not self._may_write():
            return
        numbers = {name: value for name, value in row.items() if name != "report"}
        if "report" in row:  # before the row, which then never is without it
            path = evaluation_path(self._folder, int(row["step"]))
            path.parent.mkdir(exist_ok=True)
            write_json(path, _plain(row["report"]), FREE_RUN)
        self._write(numbers)
        values = "  ".join(
            f"{name.replace('_', ' ')} {numbers[name]:.4f}" for name in numbers if name.startswith("eval_")
        )
        self.say(f"step {row['step']}/{self._num_steps}  {values}")

    def _write(self, row: Row) -> None:
        with self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: _plain(value) for name, value in row.items()}, allow_nan=False) + "\n")
        self._track(row, int(row["step"]))


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a `metrics.jsonl`, and how many lines cannot be read, besides a last one that a kill cut short."""
    rows: list[dict[str, Any]] = []
    num_bad = 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    for line in lines[:-1]:
        try:
            row = json.loads(line)
            row["step"] + 0
            rows.append(row)
        except (ValueError, KeyError, TypeError):
            num_bad += 1
    return rows, num_bad


def evaluation_path(folder: Path, step: int) -> Path:
    """Where the report of a step's evaluation is."""
    return folder / EVALUATIONS / f"step-{step:08d}.json"


def _plain(value: Any) -> Any:
    """A number, or a tree of numbers, as JSON has it, which knows neither NaN nor infinity: None in their place."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if math.isfinite(value) else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
