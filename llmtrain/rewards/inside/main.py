"""The start of a process in the sandbox: reads its job, shuts itself in, then is the solution or the tester."""

from __future__ import annotations

import os
import select

from llmtrain.rewards.inside import solution, tester, walls, wire

JOB = 0  # standard input, which the run holds open: if it is closed, the run has died


def main() -> None:
    """Read the job, a line, and do it.

    The solution's job: limits, readable, hooks, reading, writing, prelude, code. The tester's: setup, tests,
    under_test and verdict_fd instead of the last two.
    """
    job = wire.Channel(JOB, JOB).receive()
    held = walls.put_up(job["limits"], os.getcwd(), job["readable"], hooks=job["hooks"])
    if _is_closed(JOB):  # before the kernel was asked to end this process with the run
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, JOB)
    channel = wire.Channel(job["reading"], job["writing"])
    if "code" in job:
        program = solution.Solution(channel)
        try:
            program.start(job["prelude"], job["code"])
            program.serve()
        except BaseException:
            os._exit(0)  # the tester has gone; threads of the program are not waited for
    os.write(job["verdict_fd"], f"{' '.join(held)}\n".encode())
    tester.run(channel, job["setup"], job["tests"], job["under_test"], job["verdict_fd"])
    os._exit(0)


def _is_closed(reading: int) -> bool:
    """Whether nobody can write into a pipe any more."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    return bool(poll.poll(0))
