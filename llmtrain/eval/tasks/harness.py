"""The model handed to lm-evaluation-harness, where it is installed: its tasks, its data, its numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llmtrain.models.folders.files import ADAPTER_CONFIG
from llmtrain.models.folders.given import model_folder


@dataclass(frozen=True)
class HarnessOptions:
    """What is asked of the harness; None: its own default."""

    tasks: Sequence[str]
    limit: int | None = None
    shots: int | None = None
    chat: bool = False
    include: str | None = None  # a folder with tasks of one's own, in the harness's YAML


def run_harness(path: str, options: HarnessOptions) -> None:
    """Run `lm_eval` on a model's folder. Raises ValueError if it is not installed, or fails."""
    if find_spec("lm_eval") is None:
        raise ValueError("--harness needs lm-evaluation-harness: pip install 'llmtrain[harness]'")
    status = subprocess.run(harness_command(model_folder(path), options), check=False).returncode
    if status:
        raise ValueError(f"--harness: lm_eval ended with status {status}; what it says is above")


def harness_command(folder: Path, options: HarnessOptions) -> list[str]:
    """The command line that measures a model's or an adapter's folder."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", *_model_arguments(folder)]
    command += ["--tasks", *options.tasks]
    for option, value in (
        ("--limit", options.limit),
        ("--num_fewshot", options.shots),
        ("--include_path", options.include),
    ):
        command += [] if value is None else [option, str(value)]
    return [*command, "--apply_chat_template"] if options.chat else command


def _model_arguments(folder: Path) -> list[str]:
    if not (folder / ADAPTER_CONFIG).is_file():
        return [f"pretrained={folder}"]
    base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return [f"pretrained={base}", f"peft={folder}", f"tokenizer={folder}"]
