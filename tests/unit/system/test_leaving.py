"""What a process of a launch says when torchrun ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENDED = """
import os, signal
from llmtrain.recipes.command import resumable_command
with resumable_command():
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_process_that_is_ended_since_another_failed_does_not_speak_of_a_signal(
    tmp_path: Path, has_failed: bool
) -> None:
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    if has_failed:
        (tmp_path / "1" / "error.json").touch()
    own = {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(tmp_path / "0" / "error.json")}
    ended = subprocess.run([sys.executable, "-c", ENDED], env=os.environ | own, capture_output=True, text=True)
    assert ended.returncode == 0 and not ended.stderr
    assert ("interrupted before training" in ended.stdout) != has_failed
