"""A real Slurm on this machine: munge, a controller, and nodes that are all this host.

Debian's packages are enough: `apt-get install slurmctld slurmd slurm-client munge`. Everything is in one folder, with
free ports and a separate munge socket, so several of them can run side by side, next to a Slurm of the machine itself.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tiny_run import ROOT, built_extensions

PACKAGES = "slurmctld slurmd slurm-client munge"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "taskset")
NUM_NODES = 4  # two for a job; a second job, and what preempts, need theirs
NUM_GPUS = 2  # of a node: plain files in place of devices, so that the scripts may ask for them
KILL_SECONDS = 30
"""KillWait, Slurm's default: from SIGTERM to SIGKILL where a job is cancelled, requeued or fails."""
GRACE_SECONDS = 120
"""GraceTime of what can be preempted: from SIGTERM to the end."""
POLL_SECONDS = 0.3
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}

CONFIG = """
ClusterName=tests
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={spool}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
JobRequeue=1
KillWait={kill_seconds}
ReturnToService=2
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={spool}/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=spare Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_seconds}
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why there can be no Slurm here; None: there can."""
    if not Path("/proc/self/task").is_dir():
        return "no Linux: Slurm is not tested here"
    lacking = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    if lacking:
        return f"no {', '.join(lacking)}: Slurm is not tested here; as root: apt-get install {PACKAGES}"
    return None if os.geteuid() == 0 else "not root: Slurm is not tested here (its daemons start as root)"


class Cluster:
    """A running Slurm; `stop` leaves nothing of it."""

    def __init__(self, folder: Path) -> None:
        """`folder`: what jobs print and daemons log goes there."""
        self.folder = folder
        self.environment = environment(folder)
        spool = Path(tempfile.mkdtemp(prefix="slurm-"))  # the name of a socket has 107 characters at most
        commands = configure(folder, spool)
        (folder / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
        with (folder / "daemons.log").open("wb") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("keeper.py")), str(folder / "commands.json"), str(spool)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        try:
            self.wait_until(self._is_up, 60, "the nodes to register")
        except BaseException:
            self.stop()
            raise

    def _is_up(self) -> bool:
        shown = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "spare", "-o", "%T"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return shown.stdout.split() == ["idle"] * NUM_NODES

    def stop(self) -> None:
        """End the daemons and every job."""
        self._keeper.communicate(timeout=60)

    def run(self, *argv: str, **variables: str) -> str:
        """What a command of Slurm prints. Raises AssertionError with its error if it fails."""
        ended = subprocess.run(argv, env=self.environment | variables, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, f"{argv}: {ended.stdout}{ended.stderr}{self.logs()}"
        return ended.stdout

    def submit(self, script: str, *arguments: str, options: Sequence[str], **variables: str) -> str:
        """`sbatch OPTIONS slurm/SCRIPT.sbatch ARGUMENTS`; the number of the job."""
        name = self.folder / "job-%A_%a.out" if "--array" in " ".join(options) else self.folder / "job-%j.out"
        path = str(ROOT / "slurm" / f"{script}.sbatch")
        argv = ["sbatch", "--parsable", f"--output={name}", *options, path, *arguments]
        return self.run(*argv, **variables).strip()

    def output(self, job: str) -> str:
        """What a job has printed so far, all its starts together."""
        path = self.folder / f"job-{job}.out"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def show(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job (`scontrol show job`)."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        return self.show(job)["JobState"]

    def wait_ended(self, job: str, limit_seconds: float = 400) -> str:
        """Wait for the end of a job; its state."""
        self.wait_until(lambda: self.state(job) in ENDED, limit_seconds, f"the end of job {job}", job)
        return self.state(job)

    def wait_until(self, condition: Callable[[], bool], limit_seconds: float, what: str, job: str = "") -> None:
        """Wait for a condition. Raises AssertionError with what the job and the daemons have written."""
        deadline = time.monotonic() + limit_seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.output(job)}\n{self.logs()}"
            time.sleep(POLL_SECONDS)

    def processes(self, **variables: str) -> list[int]:
        """Processes of this cluster, daemons and jobs, that have these variables in their environment."""
        return [
            process
            for process, found in environments()
            if {"SLURM_CONF": self.conf, **variables}.items() <= found.items()
        ]

    @property
    def conf(self) -> str:
        return self.environment["SLURM_CONF"]

    def logs(self) -> str:
        """The last lines of the daemons."""
        return "".join(
            f"\n== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self.folder.glob("*.log")
        )


def configure(folder: Path, spool: Path) -> list[list[str]]:
    """Write the configuration of a cluster, whose sockets go to `spool`; the commands of its daemons."""
    for name in ("state", "gpus", "bin"):
        (folder / name).mkdir(parents=True)
    llmtrain = folder / "bin" / "llmtrain"  # of the Python that runs the tests, whatever is installed elsewhere
    llmtrain.write_text(f'#!/bin/sh\nexec {sys.executable} -m llmtrain "$@"\n', encoding="utf-8")
    llmtrain.chmod(0o755)
    ports = free_ports(NUM_NODES + 1)
    host = socket.gethostname().split(".")[0]
    nodes = [
        f"NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 Gres=gpu:{NUM_GPUS}"
        for i, port in enumerate(ports[1:])
    ]
    first_job = random.randrange(1000, 60_000)  # the port of a launch depends on it, and clusters may run side by side
    settings = {
        "first_job": first_job,
        "host": host,
        "ports": ports,
        "folder": folder,
        "spool": spool,
        "nodes": "\n".join(nodes),
    }
    text = CONFIG.format(kill_seconds=KILL_SECONDS, grace_seconds=GRACE_SECONDS, **settings)
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    for i in range(NUM_GPUS):
        (folder / "gpus" / f"gpu{i}").touch()
    gres = f"AutoDetect=off\nNodeName=node[0-{NUM_NODES - 1}] Name=gpu File={folder}/gpus/gpu[0-{NUM_GPUS - 1}]\n"
    (folder / "gres.conf").write_text(gres, encoding="utf-8")
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = [
        "munged",
        "--foreground",
        "--force",
        f"--socket={spool}/munge.socket",
        *(f"--{option}={folder}/munge.{end}" for option, end in files.items()),
    ]
    conf = str(folder / "slurm.conf")
    return [
        munged,
        ["slurmctld", "-D", "-f", conf],
        *(
            ["taskset", "--cpu-list", cores_of(i), "slurmd", "-D", "-N", f"node{i}", "-f", conf]
            for i in range(NUM_NODES)
        ),
    ]


def cores_of(node: int) -> str:
    """Half of the cores for each of two neighbours, as of two processes on one machine: so they use as many threads."""
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(str(core) for core in cores[node % 2 :: 2] or cores)


def environment(folder: Path) -> dict[str, str]:
    """The environment of the daemons and of who submits: nothing of a job around it, one thread for each process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "COV_"))}
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCH_EXTENSIONS_DIR": str(built_extensions())}
    path = os.pathsep.join([str(folder / "bin"), search_path()])
    return kept | ours | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "PYTHONPATH": str(ROOT)}


def search_path() -> str:
    """PATH with the daemons' folder."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])


def environments() -> Iterator[tuple[int, dict[str, str]]]:
    """Each process of this machine with the environment it was started with."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended, or is not ours
            lines = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            yield int(process.name), dict(line.split("=", 1) for line in lines if "=" in line)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
