"""An array of jobs shares the trials of a sweep; each trial ends as its run left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run
import tiny_sweep
import yaml
from cluster import Cluster
from jobs import assert_same_weights, write_inputs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_TRIALS = 4


def test_an_array_of_four_jobs_runs_four_trials_each_as_left_alone(slurm: Cluster, tmp_path: Path) -> None:
    config = write_inputs(tmp_path / "inputs") / "pretrain" / "config.yaml"
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"optim.lr": {"log": [0.001, 0.1]}}), encoding="utf-8")
    sweep = tmp_path / "sweep"
    search = [
        str(config),
        str(space),
        f"--trials={NUM_TRIALS}",
        "--recipe=pretrain",
        "--sampler=random",
        "--no-pruning",
        f"--dir={sweep}",
    ]
    array = slurm.submit("sweep", *search, options=["--array=0-3", "--gpus-per-node=1", f"--chdir={tmp_path}"])
    jobs = [f"{array}_{index}" for index in range(4)]
    assert [slurm.wait_ended(job) for job in jobs] == ["COMPLETED"] * 4, "".join(map(slurm.output, jobs))
    records = tiny_sweep.records(sweep)
    assert [(record.number, record.state) for record in records] == [(i, "finished") for i in range(NUM_TRIALS)]
    assert len({record.values["optim.lr"] for record in records}) == NUM_TRIALS
    assert (sweep / "best.yaml").exists()
    for record in records:
        alone = tmp_path / f"alone-{record.number}"
        of_trial = tmp_path / "sweep" / "configs" / f"{record.number:04d}.yaml"
        ended = tiny_run.run(of_trial, f"run.dir={alone}")
        assert ended.code == 0, ended.err
        assert_same_weights(sweep / "trials" / f"{record.number:04d}", alone)
