"""Which launcher of a Slurm job this is, from the variables that Slurm sets; what is not a launch is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llmtrain.launch.slurm import FIRST_PORT, NUM_PORTS, first_host, reachable, slurm_step

BATCH = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
STEP = BATCH | {
    "SLURM_JOB_NODELIST": "node[1-4]",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_NODEID": "1",
}
ONE_NODE = STEP | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}


def test_a_step_of_several_nodes() -> None:
    step = slurm_step(STEP)
    assert step is not None
    assert (step.num_nodes, step.node_rank, step.first_host) == (2, 1, "node3")


@pytest.mark.parametrize("environment", [{}, ONE_NODE, {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_NTASKS": "8"}])
def test_one_node_needs_no_slurm(environment: dict[str, str]) -> None:
    assert slurm_step(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (BATCH, "this job has 2 nodes, but only this one would train: .*srun --ntasks-per-node=1 llmtrain launch"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "16"}, "srun started 16 launchers on 2 nodes: one per node"),
        (ONE_NODE | {"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 launchers on 1 node: one per node"),
    ],
)
def test_what_is_not_one_launcher_per_node_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slurm_step(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[003-010,015],login1", "node003"),
        ("node[7,9-12]", "node7"),
        ("rack[1-2]n[04-08].cluster", "rack1n04.cluster"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_ports_are_of_the_job_and_the_step() -> None:
    ports = set()
    for job in (7, 8, 123_456_789):
        for step in (0, 1):
            found = slurm_step(STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
            assert found is not None and FIRST_PORT <= found.port < FIRST_PORT + NUM_PORTS
            ports.add(found.port)
    assert len(ports) == 6


def test_a_name_that_only_slurm_knows_is_asked_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reachable("localhost") == "localhost"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"node0\.invalid, the first node, has no address here: give --main_process_ip"
    ):
        reachable("node0.invalid")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 'NodeName=node0 NodeAddr=127.0.0.1 NodeHostName=host'\n", encoding="utf-8")
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin:/usr/bin")
    assert reachable("node0.invalid") == "127.0.0.1"
