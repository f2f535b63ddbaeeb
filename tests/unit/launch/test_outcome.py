"""The exit code of a launch, and which process is named as the first that failed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from llmtrain.launch.outcome import Left, code_of_failures, code_of_outcomes, reason, what_was_left

NOWHERE = Path("no-logs")


def failure(exitcode: int, rank: int = 0) -> ProcessFailure:
    return ProcessFailure(local_rank=rank, pid=1, exitcode=exitcode, error_file="none")


@pytest.mark.parametrize(
    ("outcomes", "code"), [([], 0), (["75\n"], 75), (["130\n"], 130), (["75\n", "130\n"], 130), (["75", "75"], 75)]
)
def test_processes_that_end_well_leave_the_code(tmp_path: Path, outcomes: list[str], code: int) -> None:
    for rank, outcome in enumerate(outcomes):
        (tmp_path / str(rank)).write_text(outcome, encoding="ascii")
    assert code_of_outcomes(tmp_path) == code


@pytest.mark.parametrize(
    ("exitcode", "received", "code"),
    [
        (1, [], 1),
        (2, [], 2),
        (7, [], 1),
        (-signal.SIGKILL, [], 1),
        (-signal.SIGTERM, [], 1),
        (130, [signal.SIGINT], 130),
        (-signal.SIGTERM, [signal.SIGTERM], 75),  # before it had a handler
        (-signal.SIGUSR1, [signal.SIGUSR1], 75),
        (-signal.SIGINT, [signal.SIGINT], 130),
        (-signal.SIGTERM, [signal.SIGHUP], 75),
        (-signal.SIGKILL, [signal.SIGTERM], 1),
        (1, [signal.SIGTERM], 1),
    ],
)
def test_the_code_of_a_failure(exitcode: int, received: list[signal.Signals], code: int) -> None:
    assert code_of_failures({0: failure(exitcode)}, received) == code


def test_the_first_that_wrote_why_it_failed_is_named() -> None:
    failures = {4: failure(1, 0), 5: failure(1, 1)}
    left = [Left(4, "DistBackendError: connection closed", 20), Left(5, "RuntimeError: planted", 10)]
    line = reason(failures, left, NOWHERE)
    assert line.startswith("error: rank 5 on ") and line.endswith(" failed first: RuntimeError: planted")


def test_the_rank_that_ended_the_others_is_named() -> None:
    left = [Left(4, "stopped: rank 5 (node1) failed: planted", 10, False), Left(5, "RuntimeError: planted", 20)]
    assert "rank 5 on " in reason({4: failure(1, 0)}, left, NOWHERE)  # torchrun has not seen the end of rank 5 yet


def test_a_node_whose_ranks_others_ended_says_which() -> None:
    line = "stopped: rank 0 (node0) failed: planted"
    assert reason({4: failure(1)}, [Left(4, line, 10, False)], NOWHERE) == line


def test_a_killed_process_is_named_before_those_that_miss_it() -> None:
    failures = {0: failure(1), 1: failure(-signal.SIGKILL, 1)}
    line = reason(failures, [Left(0, "DistBackendError: connection closed", 20)], NOWHERE)
    assert line.startswith("error: rank 1 on ")
    assert line.endswith("was ended by SIGKILL: the node may be out of memory")


def test_a_process_that_torchrun_killed_as_it_hung_is_not_taken_for_the_first_that_failed() -> None:
    failures = {0: failure(1), 1: failure(-signal.SIGKILL, 1)}
    failures[0].timestamp -= 30
    line = "stopped: rank 1 (node0) hangs: waited 12 s in backward for it"
    assert reason(failures, [Left(0, line, 20, False)], NOWHERE) == line
    own = reason(failures, [Left(0, "RuntimeError: planted", 20)], NOWHERE)
    assert own.startswith("error: rank 0 on ") and own.endswith(" failed first: RuntimeError: planted")


def test_the_log_of_the_process_is_named_if_there_is_one(tmp_path: Path) -> None:
    log = tmp_path / "none_x" / "attempt_0" / "1" / "stderr.log"
    log.parent.mkdir(parents=True)
    log.touch()
    left = [Left(9, "RuntimeError: x", 1, True, 1)]
    assert reason({9: failure(1, 1)}, left, tmp_path).endswith(f"RuntimeError: x ({log})")


def test_a_process_that_wrote_nothing_is_named() -> None:
    line = reason({3: failure(1, 1)}, [], NOWHERE)
    assert line.startswith("error: rank 3 on ") and "with exit code 1: its last lines say why" in line


@pytest.mark.parametrize(
    ("rank", "left", "line"),
    [
        (0, [Left(0, "error: wrong", 1)], "error: wrong"),
        (1, [Left(1, "error: wrong", 1)], "[rank 1] error: wrong"),
        (1, [Left(1, "error: wrong", 1), Left(0, "error: wrong", 2)], "error: wrong"),
        (1, [Left(1, "error: wrong", 1), Left(0, "error: other", 2)], "[rank 1] error: wrong"),
    ],
)
def test_what_the_user_can_fix_is_the_line_of_one_process(rank: int, left: list[Left], line: str) -> None:
    assert reason({rank: failure(2, rank)}, left, NOWHERE) == line


def test_what_processes_leave_is_read_in_torchruns_folders(tmp_path: Path) -> None:
    for local_rank in range(2):
        file = tmp_path / "none_x" / "attempt_0" / str(local_rank) / "error.json"
        file.parent.mkdir(parents=True)
        info = {"timestamp": 1, "rank": str(8 + local_rank), "is_cause": local_rank == 0}
        file.write_text(json.dumps({"message": {"message": "error: x", "extraInfo": info}}), encoding="utf-8")
        os.utime(file, ns=(0, 5 - local_rank))
    found = sorted(what_was_left(tmp_path), key=lambda left: left.rank)
    assert found == [Left(8, "error: x", 5, True, 0), Left(9, "error: x", 4, False, 1)]
