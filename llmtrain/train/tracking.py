"""Trackers, and what each of them needs so as to write into the run's folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def check_trackers(trackers: Sequence[str]) -> None:
    """Raise ValueError for a tracker that is not installed."""
    for tracker in trackers:
        spec = find_spec(tracker)
        if spec is None or spec.origin is None:  # a folder of that name is not a package
            raise ValueError(f"log.trackers names {tracker}, which is not installed: pip install {tracker}")


def configure_trackers(trackers: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Point trackers at a run's folder, unless their own environment says otherwise; returns accelerate's settings."""
    if "wandb" in trackers and "WANDB_API_KEY" not in os.environ and not (Path.home() / ".netrc").exists():
        os.environ.setdefault("WANDB_MODE", "offline")  # else it would wait for a key to be typed
    if "mlflow" in trackers:
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    return {"wandb": {"dir": str(folder)}}
