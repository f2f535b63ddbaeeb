"""Names of files in a run's folder that training writes and reports read: known without torch."""

from __future__ import annotations

from pathlib import Path

METRICS_FILE = "metrics.jsonl"  # a row for each logged step and for each evaluation
EVENTS_FILE = "events.jsonl"  # starts, stops, skipped steps, roll-backs; unlike rows, they stay where a run goes back
LOG_FILE = "train.log"
SAMPLES_FILE = "samples.jsonl"
MEETING_PREFIX = "meeting-"  # a file that is there for a moment, so that each process sees that it is one folder
EVALUATION_FILE = "evaluation.jsonl"  # of `llmtrain eval`, in a run's or a model's folder
BIAS_FILE = "bias.jsonl"  # of `llmtrain bias`, in a run's or a model's folder
EVALUATIONS = "evaluations"  # a file for each evaluation that reports more than numbers


def bias_base_path(results: Path) -> Path:
    """Where the results of the model are that `llmtrain bias` compared with: beside those of the model itself."""
    return results.with_name(f"{results.stem}_against.jsonl")


def evaluation_path(folder: Path, step: int) -> Path:
    """Where the report of a step's evaluation is."""
    return folder / EVALUATIONS / f"step-{step:08d}.json"


def before_path(folder: Path) -> Path:
    """Where the results of the model that a run starts from are, for before and after."""
    return folder / EVALUATIONS / "before.jsonl"


def after_path(folder: Path) -> Path:
    """Where those of the model that a run exports are."""
    return folder / EVALUATIONS / "after.jsonl"
