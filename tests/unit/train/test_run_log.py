"""What the terminal shows of a run's rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.train.run_log import RunLog


def log_of(folder: Path) -> RunLog:
    return RunLog(
        folder,
        may_write=lambda: True,
        num_steps=9,
        flops=lambda totals: 0.0,
        peak_flops=1.0,
        track=lambda row, step: None,
        memory_bytes=lambda: 0,
    )


@pytest.mark.parametrize("is_resumed", [False, True])
def test_the_time_left_leaves_out_the_evaluation_before_the_first_step(
    is_resumed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_of(tmp_path)
    log.eval_row({"step": 0, "elapsed_seconds": 50.0, "eval_loss": 4.0})
    if is_resumed:
        log = log_of(tmp_path)
        log.resume_at(0, 0)
    log.train_row({"step": 1, "elapsed_seconds": 60.0, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0})
    assert "  1:20 left" in capsys.readouterr().out  # eight steps of 10 s
