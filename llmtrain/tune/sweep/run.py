"""One run of a trial: the recipe in a process of its own, watched through the files of its folder.

The watcher reads `metrics.jsonl`; the run does not know that it is watched.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llmtrain.runs.folder import FINISHED
from llmtrain.system.exit_codes import EXIT_SAVED, signal_name
from llmtrain.system.lease import Watch, contents
from llmtrain.system.run_files import METRICS_FILE
from llmtrain.train.run_log import read_rows
from llmtrain.tune.child import POLL_SECONDS, Stopped, run_command

MAX_ATTEMPTS = 3  # launches that end unfinished without an error and without a step: then something stops them


@dataclass(frozen=True)
class RunPlan:
    """What to run, and what to look at."""

    command: Sequence[str]
    folder: Path  # the run's
    log: Path  # gets what the run prints
    metric: str
    takes_best: bool  # the score is of the evaluation with the lowest loss, whose model is exported; else of the last


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    state: Literal["finished", "pruned", "failed"]
    score: float | None
    error: str  # the first line of it
    steps: int
    tokens: int
    seconds: float


def run_to_end(
    plan: RunPlan, should_prune: Callable[[int, float], bool], stop_requested: Callable[[], bool]
) -> RunResult:
    """Start or continue a run until it is finished, pruned or failed.

    `should_prune` gets the step and the metric of each evaluation after the first step. Raises Stopped.
    """
    started = time.monotonic()
    result = _run_to_end(plan, should_prune, stop_requested)
    # With the start of the process; of a run that was taken up, at least what its folder says.
    return replace(result, seconds=max(result.seconds, time.monotonic() - started))


def _run_to_end(
    plan: RunPlan, should_prune: Callable[[int, float], bool], stop_requested: Callable[[], bool]
) -> RunResult:
    without_progress, steps_before = 0, -1
    while not (plan.folder / FINISHED).is_file():
        if stop_requested():
            raise Stopped
        _wait_for_other(plan.folder, stop_requested)
        if (plan.folder / FINISHED).is_file():
            break
        status, is_pruned = _launch(plan, should_prune, stop_requested)
        if is_pruned:
            return _result(plan, "pruned", "")
        if status not in (0, EXIT_SAVED):
            return _result(plan, "failed", first_error(plan.log, status))
        steps = _steps(plan.folder)
        without_progress, steps_before = (0 if steps > steps_before else without_progress + 1), steps
        if without_progress >= MAX_ATTEMPTS:
            return _result(plan, "failed", f"it ends without an error before it is finished: see {plan.log}")
    return _finished(plan)


def evaluations(folder: Path, metric: str) -> list[tuple[int, float | None]]:
    """(step, metric) of each evaluation of a run so far that has the metric; None: it was not finite."""
    return [(int(row["step"]), row[metric]) for row in _evaluated(folder) if metric in row]


def _launch(
    plan: RunPlan, should_prune: Callable[[int, float], bool], stop_requested: Callable[[], bool]
) -> tuple[int, bool]:
    """(exit status, whether it was pruned) of a launch. Raises Stopped, if its end has not come before."""
    watcher = _Watcher(plan, should_prune)

    def should_stop() -> bool:
        watcher.look()
        return watcher.is_bad or stop_requested()

    plan.log.parent.mkdir(parents=True, exist_ok=True)
    status = run_command(plan.command, should_stop, plan.log)
    is_pruned = watcher.is_bad
    watcher.look()  # what it wrote last is noted too
    if (plan.folder / FINISHED).is_file():
        return status, False
    if stop_requested() and not is_pruned:
        raise Stopped  # also of a run that failed: the signal may have reached it too
    return status, is_pruned


class _Watcher:
    """What a run has evaluated so far."""

    def __init__(self, plan: RunPlan, should_prune: Callable[[int, float], bool]) -> None:
        self._plan, self._should_prune = plan, should_prune
        self._seen: set[int] = set()
        self._size = -1
        self.is_bad = False  # once an evaluation is

    def look(self) -> None:
        """Take up the evaluations that are new."""
        size = _size(self._plan.folder / METRICS_FILE)
        if size == self._size:
            return
        self._size = size
        for step, value in evaluations(self._plan.folder, self._plan.metric):
            if step > 0 and step not in self._seen and value is not None:
                self._seen.add(step)
                self.is_bad = self._should_prune(step, value) or self.is_bad


def _wait_for_other(folder: Path, stop_requested: Callable[[], bool]) -> None:
    """Wait while another launch holds a run: one whose sweep was killed saves and ends, or trains to its end."""
    watch = Watch()
    while folder.is_dir() and any(watch.verdict(number, content) != "dead" for number, content in contents(folder)):
        if stop_requested():
            raise Stopped
        time.sleep(POLL_SECONDS)


def _finished(plan: RunPlan) -> RunResult:
    rows = [row for row in _evaluated(plan.folder) if plan.metric in row]
    if not rows:
        known = sorted({name for row in _rows(plan.folder) for name in row if name.startswith("eval_")})
        return _result(plan, "failed", f"no evaluation has {plan.metric}: they have {', '.join(known) or 'nothing'}")
    counts = rows[-1]
    if plan.takes_best:
        counts = min((row for row in rows if row["eval_loss"] is not None), key=_loss, default=counts)
    score = counts[plan.metric]
    if score is None or not math.isfinite(score):
        return _result(plan, "failed", f"{plan.metric} is not finite at step {counts['step']}: the run diverged")
    return _result(plan, "finished", "", score)


def _loss(row: Mapping[str, Any]) -> float:
    return float(row["eval_loss"])


def _result(
    plan: RunPlan, state: Literal["finished", "pruned", "failed"], error: str, score: float | None = None
) -> RunResult:
    rows = _rows(plan.folder)
    steps = max((int(row["step"]) for row in rows), default=0)
    tokens = max((int(row.get("tokens", 0)) for row in rows), default=0)
    seconds = max((float(row.get("elapsed_seconds", 0.0)) for row in rows), default=0.0)
    return RunResult(state, score, error, steps, tokens, seconds)


def first_error(log: Path, status: int) -> str:
    """The line that says why a run failed: ours begin with `error:`, Python's end a traceback."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    printable = ["".join(c if c.isprintable() else " " for c in line).strip() for line in lines]
    ours = [line for line in printable if line.startswith("error:") or "] error:" in line]
    if ours:
        return ours[0].split("error:", 1)[1].strip()
    is_traceback = any(line.startswith("Traceback") for line in printable)
    if status == -signal.SIGKILL:
        return "killed (SIGKILL): most often the machine's memory ran out"
    if status < 0:
        return f"ended by {signal_name(-status)}"
    named = [line for line in printable if line.split(":")[0].endswith(("Error", "Exception"))]
    if is_traceback and named:
        return named[0]
    return next((line for line in reversed(printable) if line), f"exit status {status}, and nothing was printed")


def _evaluated(folder: Path) -> list[dict[str, Any]]:
    """The rows of evaluations."""
    return [row for row in _rows(folder) if "eval_loss" in row]


def _rows(folder: Path) -> list[dict[str, Any]]:
    return read_rows(folder / METRICS_FILE)[0]


def _steps(folder: Path) -> int:
    return max((int(row["step"]) for row in _rows(folder)), default=0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
