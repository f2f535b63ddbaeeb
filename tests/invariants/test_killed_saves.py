"""A save that is killed before any one of its operations on files leaves a whole checkpoint, and so does its repair."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_run import fork, run_script

SCRIPT = Path(__file__).with_name("killed_saves.py")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_save_killed_before_any_operation_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    ended = fork(run_script, SCRIPT, [str(tmp_path)], output=tmp_path / "process").wait(580)
    assert ended.code == 0, ended.err[-3000:]
    killed = [int(times) for times in re.findall(r"killed (\d+) times", ended.out)]
    assert len(killed) == 3 and min(killed) > 15
