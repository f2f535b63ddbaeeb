"""The Slurm of the tests: it starts as often as it is asked to, several at a time, and leaves nothing running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster, environments, missing
from keeper import descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_SECONDS = 60


def test_two_clusters_run_side_by_side_and_leave_nothing_running(tmp_path: Path) -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    clusters = []
    try:
        for name in ("first", "second"):
            clusters.append(Cluster(tmp_path / name))
        for cluster in clusters:
            shown = cluster.run("srun", "--nodes=2", "--gpus-per-node=2", "printenv", "SLURMD_NODENAME")
            assert sorted(shown.split()) == ["node0", "node1"]
            job = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=srun sleep 1000").strip()
            running = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0"}
            cluster.wait_until(lambda: bool(cluster.processes(**running)), LIMIT_SECONDS, "the job's step")  # noqa: B023
    finally:
        for cluster in clusters:
            cluster.stop()
    assert not [process for cluster in clusters for process in cluster.processes()]


def test_a_killed_test_leaves_nothing_running(tmp_path: Path) -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    lines = (
        f"import time; from pathlib import Path; from cluster import Cluster; Cluster(Path({str(tmp_path / 'c')!r})); "
    )
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", lines + "print('up', flush=True); time.sleep(1000)"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as test:
        assert test.stdout is not None and test.stdout.readline() == "up\n"
        started = list(descendants(test.pid))
        assert len(started) > 4
        test.kill()
    deadline = time.monotonic() + LIMIT_SECONDS
    while [process for process, found in environments() if found.get("SLURM_CONF", "").startswith(str(tmp_path))]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
