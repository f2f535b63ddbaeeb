"""Starts two or more processes for the tests, under a configuration of recipes/accelerate.

`launch` forks them from a process that has done the imports, with the environment that `accelerate launch` gives;
`accelerate` starts the real launcher, whose processes start from nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from unittest.mock import patch

from tiny_run import Ended, Started, built_extensions, fork, run_script

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 240  # DeepSpeed builds an extension of about a minute when it first runs on a CPU
SHUTDOWN_SECONDS = 10  # until it kills; torchrun's are 30
LAUNCHERS = ("ACCELERATE_", "FSDP_", "MASTER_", "LOCAL_", "GROUP_", "TORCHELASTIC_")


def launch(script: Path, arguments: Sequence[str], *, config: str | None, output: Path) -> Ended:
    """Run a script in two processes under recipes/accelerate/CONFIG.yaml, or in one (None); raise where it fails.

    `output`: the path that the names of the files of stdout and stderr begin with.
    """
    if config is None:
        return ended_well(fork(run_script, script, arguments, output=output).wait(LIMIT_SECONDS))
    return launch_with(options_of(config), script, arguments, output=output)


def launch_with(options: Sequence[str], script: Path, arguments: Sequence[str], *, output: Path) -> Ended:
    """The same for any options of `accelerate launch`."""
    return ended_well(attempt(options, script, arguments, output=output))


def attempt(options: Sequence[str], script: Path, arguments: Sequence[str] = (), *, output: Path) -> Ended:
    """The same for what may fail."""
    return started(options, script, arguments, output=output).wait(LIMIT_SECONDS)


def started(options: Sequence[str], script: Path, arguments: Sequence[str] = (), *, output: Path) -> Started:
    """The same, which is not waited for."""
    return fork(_launch, options, script, arguments, output=output)


def ended_well(ended: Ended) -> Ended:
    """Raise AssertionError with the last lines of a run that failed."""
    assert ended.code == 0, f"exit status {ended.code}\n{ended.out[-2000:]}{ended.err[-6000:]}"
    return ended


def accelerate(options: Sequence[str], script: Path, arguments: Sequence[str] = ()) -> Ended:
    """Run `accelerate launch OPTIONS SCRIPT ARGUMENTS`."""
    return run(command(script, arguments, options))


def command(script: Path, arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """`accelerate launch OPTIONS SCRIPT ARGUMENTS`, on a free port."""
    return [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), *arguments]


def options_of(config: str, num_processes: int = 2) -> list[str]:
    """The launcher's options for recipes/accelerate/CONFIG.yaml, on a free port."""
    file = ROOT / "recipes" / "accelerate" / f"{config}.yaml"
    return ["--config_file", str(file), "--num_processes", str(num_processes), "--main_process_port", "0"]


def run(command: Sequence[str]) -> Ended:
    """Run a command; where it takes too long, end it with every process it started, and raise TimeoutExpired."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=clean_environment(), start_new_session=True
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher ends its workers, which have sessions of their own
            try:
                process.communicate(timeout=LIMIT_SECONDS)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return Ended(process.returncode, stdout, stderr)


def clean_environment() -> dict[str, str]:
    """This environment without what another launcher may have left, offline, one thread per process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS) and k not in ("RANK", "WORLD_SIZE")}
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCH_EXTENSIONS_DIR": str(built_extensions())}
    return kept | ours | {"PYTHONPATH": path, "PYTHONWARNINGS": "default"}


def _launch(options: Sequence[str], script: Path, arguments: Sequence[str]) -> None:
    """In a forked process: `accelerate launch`, whose torchrun forks the ranks in place of starting them."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    parsed = launch_command_parser().parse_args([*options, str(script), *arguments])
    with patch.dict(os.environ, clean_environment(), clear=True), patch("torch.distributed.run.run", _fork_ranks):
        launch_command(parsed)


def _fork_ranks(launcher: Namespace) -> None:
    """Run the script once per rank; exit with the status of the first rank that fails, and end the others.

    As torchrun does: with SIGTERM, and with SIGKILL after a time. A signal to stop goes on to all.
    """
    ranks = {_fork_rank(launcher, rank): rank for rank in range(int(launcher.nproc_per_node))}
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, _: _signal(ranks, number))
    signal.signal(signal.SIGALRM, lambda *_: _signal(ranks, signal.SIGKILL))
    failed = 0
    while ranks:
        process, status = os.wait()
        del ranks[process]
        if status and not failed:
            failed = abs(os.waitstatus_to_exitcode(status))
            _signal(ranks, signal.SIGTERM)
            signal.alarm(SHUTDOWN_SECONDS)
    sys.exit(failed)


def _signal(processes: Iterable[int], number: int) -> None:
    for process in list(processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _fork_rank(launcher: Namespace, rank: int) -> int:
    """Start a rank; its process id."""
    process = os.fork()
    if process:
        return process
    world_size = str(launcher.nproc_per_node)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launcher.master_port)}
    status = 1
    try:
        run_script(Path(launcher.training_script), launcher.training_script_args)
        status = 0
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
