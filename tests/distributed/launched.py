"""`llmtrain launch` as a user starts it: a process that starts others, on one "node" or as several on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from launch import LIMIT_SECONDS, clean_environment
from tiny_run import Ended

SLURM = "SLURM_"


class Launcher:
    """A started `llmtrain launch`."""

    def __init__(self, arguments: Sequence[str], cwd: Path | None = None, **environment: str) -> None:
        # Warnings as a user sees them.
        kept = {k: v for k, v in clean_environment().items() if not k.startswith(SLURM) and k != "PYTHONWARNINGS"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmtrain", "launch", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=kept | environment,
            cwd=cwd,
            start_new_session=True,
        )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; AssertionError if the launch ends before it holds."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started."""
        return [child for child in psutil.Process(self.process.pid).children() if os.getsid(child.pid) == child.pid]

    def send(self, number: signal.Signals) -> None:
        """A signal to the launcher alone."""
        self.process.send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """A signal to the launcher and its workers, as Slurm sends it to all processes of a step."""
        for process in [*self.workers(), psutil.Process(self.process.pid)]:
            process.send_signal(number)

    def wait(self) -> Ended:
        """Wait for the end."""
        out, err = self.process.communicate(timeout=LIMIT_SECONDS)
        return Ended(self.process.returncode, out, err)


@contextmanager
def started(arguments: Sequence[str], cwd: Path | None = None, **environment: str) -> Iterator[Launcher]:
    """A launcher that ends, with its workers, where the block does."""
    launcher = Launcher(arguments, cwd, **environment)
    with launcher.process:
        try:
            yield launcher
        finally:
            if launcher.process.poll() is None:
                for process in [*launcher.workers(), psutil.Process(launcher.process.pid)]:
                    process.kill()


def launched(arguments: Sequence[str], **environment: str) -> Ended:
    """Run `llmtrain launch ARGUMENTS` to its end."""
    with started(arguments, **environment) as launcher:
        return launcher.wait()


def of_node(rank: int, job: int, num_nodes: int = 2) -> dict[str, str]:
    """What `srun --ntasks-per-node=1` gives on a node, if all nodes were this machine."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_NNODES": str(num_nodes),
        "SLURM_JOB_NODELIST": "localhost,node[1-9]",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": str(num_nodes),
        "SLURM_STEP_NUM_TASKS": str(num_nodes),
        "SLURM_STEP_NODELIST": "localhost,node[1-9]",
        "SLURM_NODEID": str(rank),
        "SLURM_PROCID": str(rank),
    }
