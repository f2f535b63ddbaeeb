"""The demo: Python's own standard library -> tokenizer -> pretraining -> SFT -> reward model -> PPO -> report.

Needs no network and no data of ours. Each stage is a plain command, printed before it runs, that can be repeated by
hand; only the rows are written here. `STAGE.KEY=VALUE` overrides a key of one stage: `policy.train.steps=20`.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEMO = Path("runs/demo")
ROWS = DEMO / "rows"
REPORT = DEMO / "report.html"
STOPPED = "the demo is stopped; the same command continues it from the last checkpoint"
INTERRUPTED = 128 + signal.SIGINT  # exit code of a command that Ctrl-C ended
PROMPT = "def read(self, size=-1)"
SHOWN_ANSWERS = 4
SHOWN_CHARS = 110


@dataclass(frozen=True)
class Stage:
    """One run of the demo: its folder in DEMO, its command, and what its held-out data measure."""

    name: str
    verb: str
    config: str
    title: str
    measure: str  # of the summary's table
    key: str  # of the evaluation rows, with `_low` and `_high`
    falls: bool = False  # whether lower is better

    @property
    def folder(self) -> Path:
        return DEMO / self.name

    @property
    def is_finished(self) -> bool:
        return (self.folder / "finished.yaml").is_file()


STAGES = (
    Stage("pretrain", "pretrain", "demo", "Pretraining: how signatures and docstrings read", "loss", "eval_loss", True),
    Stage("sft", "sft", "sft_demo", "SFT: answer a signature with a description", "loss", "eval_loss", True),
    Stage(
        "reward",
        "rlhf",
        "reward_demo",
        "Reward model: score real descriptions above corrupted ones",
        "accuracy",
        "eval_accuracy",
    ),
    Stage("policy", "rlhf", "ppo_demo", "PPO: write what the reward model scores high", "score", "eval_score"),
)


def main(argv: Sequence[str]) -> None:
    """Run the stages in the present folder; a finished demo starts afresh, a stopped one continues."""
    overrides = by_stage(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if REPORT.exists():
        print(f"removing the finished demo in {DEMO} to start afresh")
        shutil.rmtree(DEMO)
    started = time.perf_counter()

    heading("1. Data: signatures and docstrings of the Python that runs this")
    run("python", os.path.relpath(Path(__file__).with_name("demo_rows.py")), str(ROWS))
    heading("2. Tokenizer: byte-level BPE")
    run("llmtrain", "tokenizer", "demo_tokenizer", *overrides["tokenizer"])
    for number, stage in enumerate(STAGES, 3):
        heading(f"{number}. {stage.title}")
        if stage.is_finished:
            print(f"finished in {stage.folder}, skipped")
            continue
        run("llmtrain", stage.verb, stage.config, *overrides[stage.name])
        if not stage.is_finished:  # a signal stopped it: saved, and no failure
            sys.exit(STOPPED)
    heading(f"{len(STAGES) + 3}. Report")
    run("llmtrain", "report", *(str(stage.folder) for stage in STAGES), "--output", str(REPORT))

    heading(f"Summary: {(time.perf_counter() - started) / 60:.1f} minutes")
    outcomes = [Outcome.of(stage) for stage in STAGES]
    for line in (*table(outcomes), *answers(), *what_next()):
        print(line)
    if failed := [outcome.stage.name for outcome in outcomes if not outcome.is_better]:
        sys.exit(f"\nnot better after training than before, by the interval of the difference: {', '.join(failed)}")


def by_stage(argv: Sequence[str]) -> dict[str, list[str]]:
    """`STAGE.KEY=VALUE` -> the overrides of each stage."""
    found: dict[str, list[str]] = {name: [] for name in ("tokenizer", *(stage.name for stage in STAGES))}
    for argument in argv:
        stage, _, override = argument.partition(".")
        if stage not in found or "=" not in override:
            sys.exit(f"error: {argument}: give STAGE.KEY=VALUE, with a stage of {', '.join(found)}")
        found[stage].append(override)
    return found


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def run(name: str, *arguments: str) -> None:
    """Print and run one command, `python` or `llmtrain`; the demo ends with it if it fails.

    Ctrl-C reaches the command too, which saves and ends, so here it only waits.
    """
    print(f"$ {shlex.join([program(name), *arguments])}", flush=True)
    command = [sys.executable, *(["-m", "llmtrain"] if name == "llmtrain" else []), *arguments]
    before = signal.signal(signal.SIGINT, lambda *_: None)  # a handler is not inherited; SIG_IGN would be
    try:
        code = subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    if code == INTERRUPTED:
        print(STOPPED, file=sys.stderr)
    if code:
        sys.exit(code)


def program(name: str) -> str:
    """How this shell calls a program of the environment: by its name, or by its path if it is not active."""
    here = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if not here.exists() or (found and Path(found) == here) else os.path.relpath(here)


@dataclass(frozen=True)
class Outcome:
    """A stage's held-out measure before and after its training, each with its 95 % interval."""

    stage: Stage
    before: tuple[float, float, float]  # value, low, high
    after: tuple[float, float, float]
    minutes: float

    @classmethod
    def of(cls, stage: Stage) -> Outcome:
        rows = [json.loads(line) for line in (stage.folder / "metrics.jsonl").read_text().splitlines()]
        before, *_, after = [row for row in rows if "eval_loss" in row]
        first, last = ((row[stage.key], row[f"{stage.key}_low"], row[f"{stage.key}_high"]) for row in (before, after))
        return cls(stage, first, last, after["elapsed_seconds"] / 60)

    @property
    def is_better(self) -> bool:
        """Whether the measure has moved the right way, by more than the 95 % interval of the difference.

        The interval is that of two samples that know nothing of each other; the items are the same, so it is cautious.
        """
        gain = (self.before[0] - self.after[0]) * (1 if self.stage.falls else -1)
        return gain > math.hypot(*((high - low) / 2 for _, low, high in (self.before, self.after)))


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The summary's table, one line per stage."""
    yield f"{'stage':<10}{'held-out':<10}{'before':<24}{'after (95 % interval)':<24}{'better':<8}minutes"
    for outcome in outcomes:
        before, after = (
            f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in (outcome.before, outcome.after)
        )
        better = "yes" if outcome.is_better else "no"
        stage = outcome.stage
        yield f"{stage.name:<10}{stage.measure:<10}{before:<24}{after:<24}{better:<8}{outcome.minutes:.1f}"


def answers() -> Iterator[str]:
    """Held-out prompts as the policy answered them before and after PPO."""
    lines = (STAGES[-1].folder / "samples.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "step" in row]
    first, last = (row["step"] for row in (rows[0], rows[-1]))
    at = {(row["step"], row["index"]): row for row in rows}
    yield ""
    yield f"{'held-out prompts, answered':<28}score"
    for index in list(dict.fromkeys(row["index"] for row in rows))[:SHOWN_ANSWERS]:
        yield at[first, index]["prompt"][-1]["content"]
        for when, step in (("before PPO", first), ("after PPO", last)):
            row: Mapping[str, Any] = at[step, index]
            yield f"  {when:<12}{row['score']:>6.2f}  {one_line(row['response'])}"


def one_line(text: str) -> str:
    """An answer as a terminal shows it: in one line, without control characters."""
    words = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in words)[:SHOWN_CHARS]


def what_next() -> Iterator[str]:
    yield ""
    yield f"report  {REPORT}"
    yield f"chat    echo {shlex.quote(PROMPT)} | {program('llmtrain')} chat {STAGES[-1].folder}"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(INTERRUPTED)
