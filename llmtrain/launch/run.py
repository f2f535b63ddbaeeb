"""accelerate's launcher in this process, one per node, with what it lacks under a scheduler.

options -> accelerate's environment for the engine -> torchrun, which starts `python -m llmtrain VERB ...` per GPU
signals -> the processes, which save -> exit code 0, 75 or 130, or that of the process that failed first
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

from accelerate.commands.launch import launch_command
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

from llmtrain.launch.options import complete, is_alone, parsed, show_gpus
from llmtrain.launch.outcome import code_of_failures, code_of_outcomes, reason, what_was_left
from llmtrain.launch.signals import PassedOn, passing_signals_on
from llmtrain.system.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SAVED, code_of_signals
from llmtrain.system.files import one_line
from llmtrain.system.leaving import OUTCOMES
from llmtrain.system.parent import LAUNCHER
from llmtrain.system.terminal import say_error

STOP_TORCHRUN = "SIGQUIT"  # what torchrun itself handles: it must hear of something
LINE_PREFIX = "[rank ${rank}] "


def launch(argv: Sequence[str]) -> int:
    """Start the processes of this node and wait for them; the exit code. Raises ValueError for a wrong command line."""
    options = parsed(argv)
    scratch = Path(tempfile.mkdtemp(prefix="llmtrain-launch-"))
    try:
        if options.cpu:
            show_gpus("")
            options.cpu = False  # accelerate would start a single process for it
        complete(options, os.environ, scratch)
        command = ["-m", "llmtrain", options.training_script, *options.training_script_args]
        if is_alone(options):
            if options.gpu_ids != "all":
                show_gpus(options.gpu_ids)
            shutil.rmtree(scratch)
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, *command])
        logs = _for_torchrun(options, scratch)
        return _run(options, scratch, logs)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _for_torchrun(options: argparse.Namespace, scratch: Path) -> Path:
    """Set the options that torchrun gets through accelerate; its folder of logs."""
    options.config_file = options.config_file or str(scratch / "ddp.yaml")
    options.training_script_args = [options.training_script, *options.training_script_args]
    options.training_script, options.module = "llmtrain", True
    options.signals_to_handle = STOP_TORCHRUN
    options.shutdown_timeout = options.save_seconds
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(options.save_seconds)
    if options.log_dir is None:
        logs = scratch / "logs"
    else:
        logs = _unused(Path(options.log_dir, _name(), f"node-{options.machine_rank or 0}"))
        options.tee, options.local_ranks_filter = "3", "0"  # all to files, and the node's first also here
        os.environ.setdefault("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", LINE_PREFIX)
    options.log_dir = str(logs)
    if not {"LOGLEVEL", "TORCH_LOGS"} & os.environ.keys():
        logging.disable(logging.ERROR)  # torchrun's words on a failure, which is reported here
    return logs


def _run(options: argparse.Namespace, scratch: Path, logs: Path) -> int:
    outcomes = scratch / "outcomes"
    outcomes.mkdir()
    os.environ |= {OUTCOMES: str(outcomes), LAUNCHER: str(os.getpid())}

    def are_started() -> bool:
        return logs.exists() and any(logs.iterdir())  # torchrun makes a folder there just before

    def leave() -> None:
        started = are_started()
        code = code_of_outcomes(outcomes) if started else code_of_signals(passed_on.received)
        if not started:
            _say(f"ended by {passed_on.received[0].name} before the processes were started")
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(code)

    passed_on = PassedOn(options.save_seconds, are_started, leave)
    with passing_signals_on(passed_on):
        try:
            launch_command(options)
        except ChildFailedError as error:
            return _failed(error, logs, passed_on, options.save_seconds)
        except SignalException as error:
            return 128 + error.sigval
        except ImportError as error:
            raise ValueError(f"{one_line(error)} (pip install 'llmtrain[deepspeed]')") from None
        except (DistError, RendezvousError, ConnectionError) as error:
            where = f"{options.main_process_ip}:{options.main_process_port}"
            _say(f"error: the nodes did not meet at {where}: {one_line(error)}")
            return EXIT_FAILED
    return code_of_outcomes(outcomes)


def _failed(error: ChildFailedError, logs: Path, passed_on: PassedOn, save_seconds: int) -> int:
    """Say which process failed first, and why; the exit code."""
    if passed_on.killed:
        name = passed_on.received[0].name
        _say(
            f"error: the processes did not end within {save_seconds} s of {name} and were killed: the last checkpoint "
            "is kept; raise --save_seconds"
        )
        return EXIT_FAILED
    if passed_on.received and (code := code_of_outcomes(Path(os.environ[OUTCOMES]))):
        return code  # everything was saved before; it is the leaving that failed
    code = code_of_failures(error.failures, passed_on.received)
    is_rank_0_silent = 0 in error.failures and error.failures[0].exitcode < 0  # it was still importing
    if code not in (EXIT_SAVED, EXIT_INTERRUPTED):
        _say(reason(error.failures, what_was_left(logs), logs))
    elif passed_on.received and is_rank_0_silent:
        _say(f"ended by {passed_on.received[0].name} before training: nothing is lost")
    return code


def _name() -> str:
    """A name for the logs of this launch, the same on every node of a Slurm job."""
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    if job is None:
        return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return f"{job}-{restarts}-{os.environ.get('SLURM_STEP_ID', '0')}"


def _unused(folder: Path) -> Path:
    """A folder, or one beside it if an earlier launch of the same step has written there: `node-0`, `node-0.1`."""
    others = (folder.with_name(f"{folder.name}.{number}") for number in count(1))
    return next(each for each in chain([folder], others) if not each.exists())


def _say(line: str) -> None:
    sys.stdout.flush()
    say_error(line)
