"""What a launcher prepares before it starts its processes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmtrain.cli import launch
from llmtrain.launch import run


def test_one_process_sees_the_gpu_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Replaced(BaseException):
        """In place of a process that becomes another program."""

    def replaced(program: str, command: Sequence[str]) -> None:
        assert command[1:] == ["-m", "llmtrain", "sft", "CONFIG"]
        raise Replaced

    monkeypatch.setattr(os, "execv", replaced)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(Replaced):
        run.launch(["--gpu_ids", "3", "sft", "CONFIG"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_launches_of_one_step_keep_their_logs_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "2"), ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "")
    monkeypatch.setenv("LOGLEVEL", "INFO")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    found = []
    for _ in range(3):
        options = argparse.Namespace(
            config_file=None,
            training_script="sft",
            training_script_args=[],
            save_seconds=1,
            log_dir=str(tmp_path),
            machine_rank=1,
        )
        logs = run._for_torchrun(options, tmp_path)
        (logs / "none_x").mkdir(parents=True)  # as torchrun does
        found.append(logs.relative_to(tmp_path).as_posix())
    assert found == ["7-0-2/node-1", "7-0-2/node-1.1", "7-0-2/node-1.2"]


LEAVES_FIRST = """
import os, sys
from llmtrain.cli import launch
assert "torch" not in sys.modules, "its C++ has read the level by then"
with launch._without_torchs_warnings():
    from torch.distributed import DistError, TCPStore
host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
guest = TCPStore("127.0.0.1", host.port, is_master=False)
del host
try:
    guest.wait(["end"])
except DistError:
    print(os.environ.get("TORCH_CPP_LOG_LEVEL"))
"""


@pytest.mark.parametrize(("level", "warned"), [(None, False), ("WARNING", True)])
def test_a_node_that_leaves_first_is_no_page_of_warnings_on_the_others(level: str | None, warned: bool) -> None:
    given = {} if level is None else {launch.LOG_LEVEL: level}
    ended = subprocess.run(
        [sys.executable, "-c", LEAVES_FIRST], capture_output=True, text=True, env=os.environ | given, check=True
    )
    assert ended.stdout == f"{level}\n" and ("recvValue" in ended.stderr) is warned
