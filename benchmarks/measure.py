"""What the benchmarks share: running a command for its peak memory and its last line, and medians of windows."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Measured:
    """What a finished command has printed and used."""

    stdout: str
    peak_bytes: int

    def last_json(self) -> Any:
        """The last line of the output, which is JSON."""
        return json.loads(self.stdout.splitlines()[-1])


def run_python(arguments: Sequence[str | Path | int], python: str | Path = sys.executable) -> Measured:
    """Run `python ARGUMENTS` in the repository's folder, and measure its largest resident set.

    Linux counts what the parent held when it started the child, so a caller must stay small: no torch in it.
    Raises RuntimeError, with the end of the output, where the command fails.
    """
    command = [str(python), *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    stdout = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{stdout[-4000:]}")
    return Measured(stdout, usage.ru_maxrss * 1024)


def tokens_per_second(seconds: Sequence[float], tokens_per_window: int) -> float:
    """The median speed of the windows between clock readings; the first window, which warms up, is left out."""
    windows = [after - before for before, after in pairwise(seconds[1:])]
    return tokens_per_window / statistics.median(windows)
