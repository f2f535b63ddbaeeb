"""Both stages of recipes/rlhf.py in two real processes that stay together from one stage to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import launch
from tiny_run import RLHF, metrics
from tiny_stages import write_config, write_inputs


@pytest.mark.timeout(600)
def test_two_processes_run_both_stages_and_train_what_one_does(tmp_path: Path) -> None:
    inputs, found = write_inputs(tmp_path / "inputs"), []
    for number, engine in enumerate((None, "cpu")):
        folder = tmp_path / str(number)
        # At the fixture's rate of 0.01 a difference of 1e-8 in the first loss is one of 0.7 in the last score.
        settings = [str(write_config(folder, inputs)), "optim.lr=0.002"]
        ended = launch(RLHF, settings, config=engine, output=folder / "process")
        assert ended.out.count("policy stage: runs in") == 1
        rows = [row for row in metrics(folder / "run" / "policy") if "rollout_score" in row]
        assert (folder / "run" / "policy" / "model").is_dir()
        found.append([row["rollout_score"] for row in rows])
    one, two = found
    assert len(one) == 4 and max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-3
