"""`samples.jsonl`: a line for each text that the model wrote, of rollouts (`rollout`) and of evaluations (`step`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtrain.system.files import FREE_RUN, append_text, write_bytes
from llmtrain.system.json_lines import json_line, parsed, whole_lines

Sample = Mapping[str, Any]


def append_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Append a line for each sample. Raises ValueError if the disk is full or cannot be written."""
    if not samples:
        return
    append_text(path, "".join(map(json_line, samples)), FREE_RUN)


def keep_samples(path: Path, is_kept: Callable[[Sample], bool]) -> None:
    """Drop the other samples of a file, if it is there, and lines that are not whole, as a kill may leave the last."""
    if path.exists():
        kept = [line for line in whole_lines(path) if (sample := parsed(line)) is not None and is_kept(sample)]
        write_bytes(path, b"".join(kept), FREE_RUN)
