"""Start a recipe on every GPU of this machine, or of every node of a Slurm job.

    llmtrain launch sft CONFIG                            data parallelism on all GPUs here
    llmtrain launch --config_file zero3 sft CONFIG        ZeRO-3: a file, or a name of `llmtrain configs`
    llmtrain launch --num_processes 2 sft CONFIG          two processes, on a CPU too
    srun --ntasks-per-node=1 llmtrain launch --config_file zero3 sft CONFIG      in a Slurm job of any number of nodes

It is `accelerate launch`, and takes its options. Besides, it asks Slurm for the nodes and where they meet, passes
SIGTERM, SIGUSR1 and Ctrl-C on to the processes and waits for them to save, and ends with the exit code of one process:
0 finished, 75 saved (the same command goes on), 130 after Ctrl-C, 2 for what you can fix, 1 for other failures. The
first process that fails has the last line.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from llmtrain.recipes.command import asks_for_help, print_text
from llmtrain.system.exit_codes import code_of_signals
from llmtrain.system.nearest import nearest

VERBS = ("pretrain", "sft", "rlhf")
LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


def main(argv: Sequence[str]) -> int:
    """Launch a command line of `llmtrain launch`; the exit code. Raises ValueError for a wrong one."""
    at = next((i for i, word in enumerate(argv) if word in VERBS), len(argv))
    if asks_for_help(argv[:at]) or not argv:
        print_text(_help())
        return 0
    if at == len(argv):
        raise ValueError(_without_verb(argv))
    if asks_for_help(argv[at:]):
        os.execv(sys.executable, [sys.executable, "-m", "llmtrain", argv[at], "--help"])
    options = list(argv[:at])
    if options[-2:] == ["-m", "llmtrain"]:
        del options[-2:]
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:  # `command &` in a script ignores Ctrl-C
            signal.signal(number, _leave)
    with _without_torchs_warnings():
        from llmtrain.launch.run import launch  # seconds of imports

    return launch([*options, *argv[at:]])


@contextmanager
def _without_torchs_warnings() -> Iterator[None]:
    """Import torch so that this process alone prints errors of its C++ only: not pages of a node that left first."""
    if LOG_LEVEL in os.environ:
        yield
        return
    os.environ[LOG_LEVEL] = "ERROR"
    try:
        yield
    finally:
        del os.environ[LOG_LEVEL]  # read by now; the processes that are started print theirs


def _leave(number: int, frame: FrameType | None) -> None:
    """Before anything is started, there is nothing to save; an exception may be lost in what libraries import."""
    os.write(2, f"ended by {signal.Signals(number).name} before the processes were started\n".encode())
    os._exit(code_of_signals({number}))


def _without_verb(argv: Sequence[str]) -> str:
    near = next((found for word in argv if not word.startswith("-") and (found := nearest(word, VERBS))), None)
    hint = f"; the nearest is {near}" if near is not None else ""
    return f"llmtrain launch starts {', '.join(VERBS)}, none of which is named{hint}"


def _help() -> str:
    parser = argparse.ArgumentParser(
        prog="llmtrain launch",
        usage="llmtrain launch [options] VERB CONFIG [key=value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options of `accelerate launch --help` are taken too. VERB: pretrain, sft or rlhf.",
    )
    add = parser.add_argument
    add("--config_file", metavar="FILE", help="the engine: a YAML of accelerate, or zero3, fsdp2, ... (default: DDP)")
    add("--num_processes", metavar="N", help="processes of each node (default: its GPUs; on a CPU as in FILE, or 1)")
    add("--cpu", action="store_true", help="use no GPU")
    add("--save_seconds", metavar="S", help="time for a save after a signal, then all are killed (default: 600)")
    add("--log_dir", metavar="DIR", help="write what each process prints to DIR; here comes each node's first only")
    add("--num_machines", metavar="N", help="number of nodes (default: those of srun, or 1)")
    add("--machine_rank", metavar="I", help="which of them this is, from 0 (default: as srun numbers them)")
    add("--main_process_ip", metavar="HOST", help="node 0 (default: the first of Slurm's)")
    add(
        "--main_process_port",
        metavar="PORT",
        help="where they meet (default: from Slurm's job; on one node a free one)",
    )
    return parser.format_help()
