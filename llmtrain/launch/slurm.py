"""The nodes of a launch under Slurm: `srun --ntasks-per-node=1 llmtrain launch ...` starts one launcher on each.

Only variables of the step count (SLURM_STEP_*), which `srun` sets. The job's alone (SLURM_NNODES) are also in a batch
script and in a shell of `salloc`, where one launcher runs and the others would be waited for.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PORT, NUM_PORTS = 10_000, 20_000  # below 32,768, from where Linux gives ports to whoever asks for any
SRUN = "srun --ntasks-per-node=1 llmtrain launch"


@dataclass(frozen=True)
class Step:
    """A launcher's place among those of a step."""

    num_nodes: int
    node_rank: int
    first_host: str  # of node 0, where the processes meet
    port: int


def slurm_step(environment: Mapping[str, str]) -> Step | None:
    """Where `srun` started this launcher; None: on one node, or without Slurm.

    Raises ValueError if it is one of several on its node, or the only one in a job of several nodes.
    """
    if "SLURM_JOB_ID" not in environment:
        return None
    job_nodes = int(environment.get("SLURM_NNODES", "1"))
    if "SLURM_STEP_NUM_NODES" not in environment:
        if job_nodes > 1:
            raise ValueError(
                f"this job has {job_nodes} nodes, but only this one would train: start a launcher on each with "
                f"`{SRUN} ...`, or say --num_machines 1"
            )
        return None
    num_nodes = int(environment["SLURM_STEP_NUM_NODES"])
    num_tasks = int(environment.get("SLURM_STEP_NUM_TASKS", num_nodes))
    if num_tasks != num_nodes:
        raise ValueError(
            f"srun started {num_tasks} launchers on {num_nodes} node{'s' * (num_nodes > 1)}: one per node starts the "
            f"processes of all its GPUs, `{SRUN} ...`"
        )
    if num_nodes == 1:
        return None
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    return Step(num_nodes, int(environment["SLURM_NODEID"]), first_host(nodes), _port(environment))


def first_host(nodes: str) -> str:
    """The first name of a list of hosts as Slurm writes it: `node[003-010,015],login1` -> `node003`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise ValueError(f"SLURM_JOB_NODELIST={nodes} names no host: give --main_process_ip")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def reachable(host: str) -> str:
    """A name or an address by which other nodes find a host of Slurm.

    Names of nodes need not be known outside Slurm, which then has their address. Raises ValueError without either.
    """
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        address = _node_address(host)
        if address is None:
            raise ValueError(f"{host}, the first node, has no address here: give --main_process_ip") from None
        return address
    return host


def _node_address(host: str) -> str | None:
    """What Slurm calls the address of a node."""
    if shutil.which("scontrol") is None:
        return None
    shown = subprocess.run(["scontrol", "show", "node", host], capture_output=True, text=True).stdout
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return None if found is None or found[1] == host else found[1]


def _port(environment: Mapping[str, str]) -> int:
    """A port that is the same on all nodes and another for each job, and each step of a job."""
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
    return FIRST_PORT + (16 * job + step) % NUM_PORTS
